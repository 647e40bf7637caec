"""Rewards to advantages. Each piece maps (values [B], group [B]) -> [B]; a recipe is a chain of pieces.

`group` names the prompt group of each sample: any integers, in any order. Arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from ..system.errors import one_of, positive

Piece = Callable[[Tensor, Tensor], Tensor]
Spread = Literal["pooled", "group"]
Gate = Literal["none", "group", "batch"]


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
    total = values.new_zeros(int(index.max()) + 1).index_add_(0, index, values)
    return (total / torch.bincount(index))[index]


def group_max(values: Tensor, group: Tensor) -> Tensor:
    """The largest value of each sample's group, [B]."""
    _, index = group.unique(return_inverse=True)
    return values.new_full((int(index.max()) + 1,), -torch.inf).scatter_reduce_(0, index, values, "amax")[index]


def group_std(values: Tensor, group: Tensor, ddof: int = 0) -> Tensor:
    """The standard deviation of each sample's group, [B], over n - ddof (0 for a group of one)."""
    variance = group_mean((values - group_mean(values, group)) ** 2, group)
    if ddof:
        size = group_size(group).to(values.dtype)
        variance = variance * size / (size - ddof).clamp_min(1)
    return variance.sqrt()


def group_size(group: Tensor) -> Tensor:
    """How many samples are in each sample's group, [B]."""
    _, index, size = group.unique(return_inverse=True, return_counts=True)
    return size[index]


def center(values: Tensor, group: Tensor) -> Tensor:
    """Subtract the mean of the group. Groups whose values are all equal give exactly 0."""
    above = values + group_max(-values, group)  # over the group's lowest: equal values stay equal whatever their size
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
        positive(self, "clip", "floor")

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """rewards [B], group [B] -> advantages float64 [B]."""
        return chain(center, scale_by_rms(self.floor), clip(self.clip))(rewards, group)

    @property
    def lowest(self) -> float:
        """The smallest advantage that this can give."""
        return -self.clip


@dataclass(frozen=True)
class ZScore:
    """A = (R - mean_group R) / (std + floor), unclipped.

    `pooled` takes the standard deviation of all raw rewards, as DiffusionNFT, AWM and FlowAWR do: it grows with
    differences between prompts, and shrinks every advantage. `group` takes that of each group.
    """

    spread: Spread = "pooled"
    floor: float = 1e-4
    ddof: int = 0
    """the standard deviation divides by n - ddof: 0 (numpy's) or 1 (torch's)"""
    least: int = 1
    """groups with fewer rewards are compared with the whole batch, remembered ones included (DDPO: 16)"""

    def __post_init__(self) -> None:
        one_of("spread of rewards", self.spread, get_args(Spread))
        positive(self, "floor", "least")
        if self.ddof not in (0, 1):
            raise ValueError(f"ddof is 0 or 1, not {self.ddof}")

    lowest = -inf  # the smallest advantage that this can give

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """rewards [B], group [B] -> advantages float64 [B]."""
        r = rewards.double()
        std = group_std(r, group, self.ddof) if self.spread == "group" else r.std(correction=self.ddof)
        alone = center(r, group) / (std + self.floor)
        if self.least == 1:
            return alone
        every = torch.zeros_like(group)
        return torch.where(group_size(group) < self.least, ZScore("pooled", self.floor, self.ddof)(r, every), alone)


@dataclass(frozen=True)
class Softmax:
    """A = K softmax_group(z / temperature) - 1, z the z-score: how much the exponential tilt weighs a sample.

    FlowAWR's advantage (arXiv:2606.30376): exp(R / tau) over its group mean, minus 1, with tau the spread of rewards.
    It sums to 0 over a group and lies in [-1, K - 1] before it is clipped at the end.
    With a gate, for rewards that a rule gives (0 or 1), softmax - 1 / K is divided by its standard deviation over the
    group (the released code) or the whole batch instead of being multiplied by K: within a group it is then a z-score.
    """

    temperature: float = 1.0
    spread: Spread = "pooled"
    """of the z-score; see ZScore"""
    score_clip: float = 5.0
    """of z"""
    clip: float = 3.0
    """of the result"""
    gate: Gate = "none"
    floor: float = 0.01
    """smallest standard deviation that a gate divides by"""

    def __post_init__(self) -> None:
        one_of("spread of rewards", self.spread, get_args(Spread))
        one_of("gate", self.gate, get_args(Gate))
        positive(self, "temperature", "score_clip", "clip", "floor")

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """rewards [B], group [B] -> advantages float64 [B]."""
        z = ZScore(self.spread)(rewards, group).clamp(-self.score_clip, self.score_clip)
        z = z / self.temperature
        tilt = (z - group_max(z, group)).exp()
        tilt = tilt / group_mean(tilt, group) - 1
        if self.gate != "none":
            _, index, size = group.unique(return_inverse=True, return_counts=True)
            share = tilt / size[index]
            std = group_std(share, group) if self.gate == "group" else share.std(correction=0)
            tilt = share / (std + 1e-4).clamp_min(self.floor)
        return tilt.clamp(-self.clip, self.clip)

    @property
    def lowest(self) -> float:
        """The smallest advantage that this can give."""
        return -self.clip if self.gate != "none" else -min(1.0, self.clip)


@dataclass(frozen=True)
class HalfDifference:
    """A = (R - R of the other sample of the pair) / 2, nothing normalised or clipped (FDFO, arXiv:2603.12893)."""

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """rewards [B], group [B] of pairs -> advantages float64 [B]."""
        return center(rewards.double(), group)


@dataclass(frozen=True)
class BestAndWorst:
    """1 for the best sample of a group, -1 for the worst, 0 for the others, and for groups whose rewards are equal."""

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """rewards [B], group [B] -> advantages float64 [B]."""
        out = torch.zeros(len(rewards), dtype=torch.float64)
        for name in group.unique():
            mine = (group == name).nonzero().flatten()
            best, worst = mine[rewards[mine].argmax()], mine[rewards[mine].argmin()]
            if rewards[best] > rewards[worst]:
                out[best], out[worst] = 1.0, -1.0
        return out
