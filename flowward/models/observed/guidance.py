"""The rules by which pipelines combine two velocities, and how one is recognised by what the scheduler gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Combine = Callable[[Tensor, Tensor, float], Tensor]  # v [B, ...] with the prompt, v without it, scale


def plain(v: Tensor, v_0: Tensor, scale: float) -> Tensor:
    """Ho and Salimans, 2022."""
    return v_0 + scale * (v - v_0)


def rows_keep_their_norm(v: Tensor, v_0: Tensor, scale: float) -> Tensor:
    """As `plain`; then each row along the last axis gets the norm that it has in v."""
    mixed = plain(v, v_0, scale)
    return mixed * (v.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))


def rows_keep_at_most_their_norm(v: Tensor, v_0: Tensor, scale: float) -> Tensor:
    """As `plain`; then rows along the last axis whose norm is larger than in v get the norm that it has there."""
    mixed = plain(v, v_0, scale)
    return mixed * (v.norm(dim=-1, keepdim=True) / (mixed.norm(dim=-1, keepdim=True) + 1e-8)).clamp(max=1)


RULES: dict[str, Combine] = {
    "plain": plain,
    "each token keeps its norm": rows_keep_their_norm,
    "each token keeps at most its norm": rows_keep_at_most_their_norm,
}


@dataclass(frozen=True)
class Rule:
    """How a pipeline guides."""

    argument: str  # of the pipeline
    offset: float  # flowward's scale, less the pipeline's
    name: str  # in RULES
    negative: str | None  # the pipeline needs it as its `negative_prompt`

    def __call__(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        return RULES[self.name](v, v_0, scale)


@dataclass(frozen=True)
class Seen:
    """Two velocities in the form that the scheduler gets, and what it got."""

    v: Tensor
    v_0: Tensor
    got: Tensor
    argument: float  # the pipeline's scale


def recognised(seen: Sequence[Seen], near: float) -> tuple[str, float] | None:
    """The name of a rule and its offset, which explain all that was seen; None: no known rule does."""
    for name, rule in RULES.items():
        for offset in (0.0, 1.0):
            if all(_explains(rule, each, each.argument + offset, near) for each in seen):
                return name, offset
    return None


def _explains(rule: Combine, seen: Seen, scale: float, near: float) -> bool:
    found = rule(seen.v.float(), seen.v_0.float(), scale)
    return bool((found - seen.got.float()).norm() <= near * seen.got.float().norm())


def remembers(first: Tensor, second: Tensor, near: float) -> bool:
    """Whether the same velocities gave something else in the next step."""
    return bool((first - second).norm() > near * torch.max(first.norm(), second.norm()))
