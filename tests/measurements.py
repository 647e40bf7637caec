"""Measurements by hand: scores without a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flowward.evaluation.measurement import Measurement


def made(name: str, scores: Mapping[str, Sequence[float]], per_prompt: int = 1, **more: Any) -> Measurement:
    """One of images whose prompts 'a 0', 'b 1', 'a 2', ... alternate between the categories a and b."""
    count = len(next(iter(scores.values())))
    numbers = [k // per_prompt for k in range(count)]
    used = {"weights": "policy", "steps": 2, "seed": 7, "guidance": None, "prompts": "mine", "images": count}
    used |= {"model": {"name": name}, "rewards": {each: {"kind": "x"} for each in scores}, "guard": []}
    return Measurement(
        name,
        {**used, "prompts_sha256": "1", "versions": {"torch": "2"}, **more},
        tuple(f"{'ab'[k % 2]} {k}" for k in numbers),
        tuple("ab"[k % 2] for k in numbers),
        {each: torch.tensor(own) for each, own in scores.items()},
        frozenset(each for each in scores if each.endswith("strict")),
    )
