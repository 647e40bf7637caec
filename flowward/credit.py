"""Rewards to advantages. Each piece maps (values [B], group [B]) -> [B]; a recipe is a chain of pieces.

`group` names the prompt group of each sample: any integers, in any order. Arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Piece = Callable[[Tensor, Tensor], Tensor]


def chain(*pieces: Piece) -> Piece:
    """Apply the pieces from left to right."""

    def apply(values: Tensor, group: Tensor) -> Tensor:
        values = values.double()
        for piece in pieces:
            values = piece(values, group)
        return values

    return apply


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """The mean of each sample's group, [B]."""
    _, index = group.unique(return_inverse=True)
    total = torch.zeros(int(index.max()) + 1, dtype=values.dtype).index_add_(0, index, values)
    return (total / torch.bincount(index))[index]


def group_std(values: Tensor, group: Tensor) -> Tensor:
    """The (population) standard deviation of each sample's group, [B]."""
    return group_mean((values - group_mean(values, group)) ** 2, group).sqrt()


def center(values: Tensor, group: Tensor) -> Tensor:
    """Subtract the mean of the group. Groups whose values are all equal give exactly 0."""
    _, index = group.unique(return_inverse=True)
    low = torch.full((int(index.max()) + 1,), torch.inf, dtype=values.dtype).scatter_reduce_(0, index, values, "amin")
    above = values - low[index]  # so that equal values stay equal whatever their size
    return above - group_mean(above, group)


def scale_by_rms(floor: float = 1e-8) -> Piece:
    """Divide by the root mean square over the whole batch; a batch without any signal gives 0."""

    def scale(values: Tensor, group: Tensor) -> Tensor:
        return values / values.square().mean().sqrt().clamp_min(floor)

    return scale


def clip(bound: float) -> Piece:
    """Clamp to [-bound, bound]."""

    def clamp(values: Tensor, group: Tensor) -> Tensor:
        return values.clamp(-bound, bound)

    return clamp


@dataclass(frozen=True)
class CentredRMS:
    """A = clip((R - mean_group R) / Z, -clip, clip), Z the RMS of the centred rewards over the batch.

    AdvantageFlow's advantage (arXiv:2605.26013). Unlike a standard deviation of raw rewards, Z does not grow with
    differences *between* prompts. A batch in which every group is all right or all wrong gives A = 0.
    """

    clip: float = 1.0
    floor: float = 1e-8

    def __post_init__(self) -> None:
        if self.clip <= 0 or self.floor <= 0:
            raise ValueError(f"clip and floor must be positive, not {self.clip} and {self.floor}")

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """rewards [B], group [B] -> advantages float64 [B]."""
        return chain(center, scale_by_rms(self.floor), clip(self.clip))(rewards, group)

    @property
    def least(self) -> float:
        """The smallest advantage that this can give."""
        return -self.clip
