"""From rewards to advantages. Each piece maps (values [B], group [B]) -> [B]; pieces can be chained.

`group` is the group number of each sample: any integers, in any order. Arithmetic is float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from ..system.errors import between, one_of, positive

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


def members(index: Tensor, count: int) -> list[Tensor]:
    """The rows of each of `count` groups, in rising order; index [B] are their numbers from 0 to count - 1."""
    return list(index.argsort(stable=True).split(index.bincount(minlength=count).tolist()))


def group_size(group: Tensor) -> Tensor:
    """The number of samples in each sample's group, [B]."""
    _, index, size = group.unique(return_inverse=True, return_counts=True)
    return size[index]


def center(values: Tensor, group: Tensor) -> Tensor:
    """Subtract the mean of the group. If all values of a group are equal, the result is exactly 0."""
    above = values + group_max(-values, group)  # minus the group's minimum, so that equal values give 0
    return above - group_mean(above, group)


def scale_by_rms(floor: float = 1e-8) -> Piece:
    """Divide by the root mean square over the whole batch; a batch of zeros stays 0."""

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
    differences *between* prompts. If the rewards of every group are equal, A = 0.
    """

    clip: float = 1.0
    """clip advantages to [-clip, clip]"""
    floor: float = 1e-8
    """smallest Z to divide by"""

    def __post_init__(self) -> None:
        positive(self, "clip", "floor")

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Map rewards [B] and group [B] to advantages, float64 [B]."""
        return chain(center, scale_by_rms(self.floor), clip(self.clip))(rewards, group)

    @property
    def lowest(self) -> float:
        """The smallest possible advantage."""
        return -self.clip


@dataclass(frozen=True)
class ZScore:
    """A = (R - mean_group R) / (std + floor), unclipped.

    `pooled` divides by the standard deviation of all raw rewards, as DiffusionNFT, AWM and FlowAWR do. It grows with
    differences between prompts, which shrinks every advantage. `group` divides by the group's standard deviation.
    """

    spread: Spread = "pooled"
    """divide by the standard deviation of all rewards (`pooled`) or of the `group`"""
    floor: float = 1e-4
    """added to the standard deviation"""
    ddof: int = 0
    """divide the variance by n - ddof: 0 (as numpy) or 1 (as torch)"""
    least: int = 1
    """compare groups with fewer rewards with the whole batch and reward buffer (DDPO: 16)"""

    def __post_init__(self) -> None:
        one_of("spread of rewards", self.spread, get_args(Spread))
        positive(self, "floor")
        between(self, 1, 10**9, "least")
        if self.ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 or 1, not {self.ddof}")

    lowest = -inf  # the smallest possible advantage

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Map rewards [B] and group [B] to advantages, float64 [B]."""
        r = rewards.double()
        std = group_std(r, group, self.ddof) if self.spread == "group" else r.std(correction=self.ddof)
        alone = center(r, group) / (std + self.floor)
        if self.least == 1:
            return alone
        every = torch.zeros_like(group)
        return torch.where(group_size(group) < self.least, ZScore("pooled", self.floor, self.ddof)(r, every), alone)


@dataclass(frozen=True)
class Softmax:
    """A = K softmax_group(z / temperature) - 1, z the z-score: a sample's weight under the exponential tilt, minus 1.

    FlowAWR's advantage (arXiv:2606.30376): exp(R / tau) over its group mean, minus 1, with tau the spread of rewards.
    Before the final clip it sums to 0 over a group and lies in [-1, K - 1].
    A gate is for rule-based rewards (0 or 1). Then softmax - 1 / K is not multiplied by K but divided by its standard
    deviation over the group (the released code) or the whole batch. With `group` it is a z-score within the group.
    """

    temperature: float = 1.0
    """temperature of the softmax"""
    spread: Spread = "pooled"
    """compute z with the standard deviation of all rewards (`pooled`) or of the `group`"""
    score_clip: float = 5.0
    """clip z to [-score_clip, score_clip]"""
    clip: float = 3.0
    """clip advantages to [-clip, clip]"""
    gate: Gate = "none"
    """for 0/1 rewards: divide by the standard deviation over the `group` or `batch`"""
    floor: float = 0.01
    """smallest standard deviation that a gate divides by"""

    def __post_init__(self) -> None:
        one_of("spread of rewards", self.spread, get_args(Spread))
        one_of("gate", self.gate, get_args(Gate))
        positive(self, "temperature", "score_clip", "clip", "floor")

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Map rewards [B] and group [B] to advantages, float64 [B]."""
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
        """The smallest possible advantage."""
        return -self.clip if self.gate != "none" else -min(1.0, self.clip)


@dataclass(frozen=True)
class HalfDifference:
    """A = (R - R of the other sample of the pair) / 2, neither normalised nor clipped (FDFO, arXiv:2603.12893)."""

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Map rewards [B] and group [B], where groups are pairs, to advantages, float64 [B]."""
        return center(rewards.double(), group)


@dataclass(frozen=True)
class BestAndWorst:
    """A = 1 for the best sample of a group, -1 for the worst, 0 for the others. Equal rewards in a group give 0."""

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Map rewards [B] and group [B] to advantages, float64 [B]."""
        out = torch.zeros(len(rewards), dtype=torch.float64)
        names, index = group.unique(return_inverse=True)
        for mine in members(index, len(names)):
            best, worst = mine[rewards[mine].argmax()], mine[rewards[mine].argmin()]
            if rewards[best] > rewards[worst]:
                out[best], out[worst] = 1.0, -1.0
        return out


@dataclass(frozen=True)
class Even:
    """A = 1 for every sample: the loss does not learn from rewards, which are only watched."""

    constant = True  # the advantages do not depend on the rewards

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Map rewards [B] to advantages of 1, float64 [B]."""
        return torch.ones(len(rewards), dtype=torch.float64)


def constant(credit: object) -> bool:
    """Whether advantages do not depend on rewards: a credit says so in its optional attribute `constant`."""
    return bool(getattr(credit, "constant", False))
