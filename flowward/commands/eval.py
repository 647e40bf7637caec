"""flowward eval"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import tyro

from .. import prompts
from ..evaluate import Evaluation, evaluate
from ..log import table
from ..models.loading import Loading
from .options import parse, policy_of, warn_of_guidance


@dataclass(frozen=True)
class Evaluate:
    """Measure models or runs, all in the same way."""

    models: tyro.conf.Positional[tuple[str, ...]]
    """built-in models, run folders, and pipelines of diffusers"""
    evaluation: Annotated[Evaluation, tyro.conf.OmitArgPrefixes] = field(default_factory=Evaluation)
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    json: Path | None = None
    """also write the numbers, with all settings, to this file"""


def run(words: list[str]) -> int:
    chosen = parse(Evaluate, words, "eval")
    if not chosen.models:
        raise ValueError("name at least one model or run to measure")
    texts = prompts.load(chosen.evaluation.prompts)
    found = {}
    for name in chosen.models:
        warn_of_guidance(name, chosen.evaluation.sampler.guidance)
        policy = policy_of(name, chosen.evaluation.weights, chosen.loading)
        result = evaluate(policy, texts, replace(chosen.evaluation, weights="policy"))
        found[policy.name] = {**result, "weights": chosen.evaluation.weights}
    table(found)
    if chosen.json:
        chosen.json.parent.mkdir(parents=True, exist_ok=True)
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0
