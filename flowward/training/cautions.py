"""Sentences about a run before it starts: what guidance costs, prompts in training and evaluation, unlike guidance."""

from __future__ import annotations

from typing import Any

from ..evaluation.leakage import leak
from ..process.policy import Policy
from ..prompts import PromptSet


def remarks_on_guidance(policy: Policy, guidance: float) -> list[str]:
    """The cost of the guidance scale in training, and a note if the model was published with another one."""
    lines = [f"{remark} (--algorithm.rollout.guidance)"] if (remark := policy.remark(guidance)) else []
    if (many := policy.evaluations(guidance)) > 1:
        lines.append(f"guidance {guidance:g} needs {many} network evaluations per step: with and without the prompt")
    return lines


def remarks_on_prompts(settings: Any, texts: PromptSet, held_out: PromptSet) -> tuple[str, ...]:
    how, drawn = settings.evaluation, settings.algorithm.rollout.guidance
    sources = ("" if settings.preferences else settings.prompts, how.prompts)
    found = [leaked] if (leaked := leak(texts, held_out, how.chosen(held_out), sources)) else []
    if not settings.preferences and (unlike := how.unlike(drawn)):
        found.append(f"{unlike}: use --evaluation.sampler.guidance {drawn:g} to match")
    return tuple(found)
