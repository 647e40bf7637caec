"""flowward sample"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from .. import images
from ..evaluate import draw
from ..rollout import Sampler
from .options import parse, policy_of


@dataclass(frozen=True)
class Sample:
    """Draw images for prompts, as one labelled grid."""

    model: tyro.conf.Positional[str]
    """built-in model, or a run folder"""
    prompts: tyro.conf.Positional[tuple[str, ...]]
    """one or more prompts"""
    count: int = 4
    """images per prompt"""
    output: Path = Path("sample.png")
    seed: int = 0
    weights: Literal["policy", "ema"] = "policy"
    """of a run"""
    steps: int = 10
    shift: float = 1.0


def run(words: list[str]) -> int:
    chosen = parse(Sample, words, "sample")
    if chosen.count < 1 or not chosen.prompts:
        raise ValueError("name at least one prompt, and draw at least one image of it")
    if chosen.seed < 0:
        raise ValueError(f"the seed must not be negative, it is {chosen.seed}")
    policy = policy_of(chosen.model, chosen.weights)
    texts = [prompt for prompt in chosen.prompts for _ in range(chosen.count)]
    drawn = draw(policy, texts, Sampler(chosen.steps, chosen.shift), chosen.seed)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    images.save(images.labelled_grid(drawn, texts, columns=chosen.count), chosen.output)
    print(f"{len(texts)} images of {policy.name}: {chosen.output}")
    return 0
