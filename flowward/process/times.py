"""Time distributions of training points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..system.errors import between, one_of
from .flow import refuse_shift, shifted

Law = Literal["uniform", "power", "stratified", "logit-normal", "levels", "bins"]
FLOOR = 0.01  # smallest logit-normal time: there is nothing to learn at time 0
REACH = (0.05, 0.95)  # times that must be drawn for a mean over points to stand for an integral over all times
GAP = 0.5  # the same of neighbouring times of a grid


@dataclass(frozen=True)
class Times:
    """Time distribution of the training points of one image; its times are drawn together.

    `uniform`: independent in [low, high], then shifted (AdvantageFlow). `power`: the same with density 2 t (RAM), so
    that noisy points are more frequent. `stratified`: [low, high] is split into equal parts, with one time in each,
    then shifted. `logit-normal`: stratified normal quantiles through a sigmoid, then
    shifted (Esser et al., 2024, arXiv:2403.03206). `levels`: distinct times of the sampler's own grid, with indices
    first to last - 1 (DiffusionNFT: 9 of its 10). `bins`: that range is split into equal parts, with one time of each
    (AWM); there may be more parts than times (CRD: 20 of 8). The order is random if it could matter.
    """

    law: Law = "uniform"
    """time distribution of training points"""
    low: float = 0.0
    """smallest time of `uniform`, `power` and `stratified`, before the shift"""
    high: float = 1.0
    """largest time of `uniform`, `power` and `stratified`, before the shift"""
    shift: float = 1.0
    """move times towards noise (> 1); `levels` and `bins` use the sampler's shift instead"""
    first: int = 0
    """first step of the sampler's grid that `levels` and `bins` use"""
    last: int | None = None
    """end of the steps that `levels` and `bins` use, exclusive (None: all)"""

    def __post_init__(self) -> None:
        one_of("time distribution", self.law, get_args(Law))
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"times need 0 <= low < high <= 1, not low = {self.low} and high = {self.high}")
        refuse_shift(self.shift, "times")
        if self.first < 0 or (self.last is not None and self.last <= self.first):
            raise ValueError(f"times need 0 <= first < last, not first = {self.first} and last = {self.last}")

    def refuse(self, count: int, levels: int) -> None:
        """Raise ValueError if `count` times cannot be drawn from a sampler with this many `levels`."""
        last = levels if self.last is None else self.last
        if self.law in ("levels", "bins") and last > levels:
            raise ValueError(
                f"training points cannot use steps {self.first} to {last - 1} of a sampler with {levels} steps; lower "
                "points.times.last, or use more steps"
            )
        if self.law == "levels" and count > last - self.first:
            raise ValueError(
                f"{count} distinct times per image cannot be drawn from steps {self.first} to {last - 1} of a sampler "
                f"with {levels} steps; use fewer points per image, more steps, or another time distribution"
            )

    def __call__(self, count: int, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw float32 [count] in [0, 1]; `levels` [S] are the times at which the sampler evaluated the network."""
        last = len(levels) if self.last is None else self.last
        if self.law == "levels":
            chosen = torch.randperm(last - self.first, generator=generator)[:count]
            return levels[self.first + chosen].float()
        if self.law == "bins":
            many = last - self.first
            edges = torch.arange(count + 1, dtype=torch.float64) * many / count
            edges = edges.floor() if count <= many else edges
            places = edges[:-1] + torch.rand(count, generator=generator, dtype=torch.float64) * edges.diff()
            return levels[self.first + places.long().clamp_max(many - 1)].float()
        part = torch.rand(count, generator=generator)
        if self.law == "uniform":
            return shifted(self.low + (self.high - self.low) * part, self.shift)
        if self.law == "power":  # the inverse of t^2, its distribution function
            return shifted((self.low**2 + (self.high**2 - self.low**2) * part).sqrt(), self.shift)
        part = (torch.randperm(count, generator=generator) + part) / count
        if self.law == "stratified":
            return shifted(self.low + (self.high - self.low) * part, self.shift)
        normal = torch.special.ndtri(part.double().clamp(1e-6, 1 - 1e-6))
        return shifted(torch.sigmoid(normal), self.shift).clamp_min(FLOOR).float()

    def width(self, t: Tensor, count: int, levels: Tensor) -> Tensor | None:
        """1 / density of each time t [B], float32 [B]: the mean of width f(t) over points is the integral of f over t.

        `levels` and `bins` have no density. There it is the width of a time in the trapezoid rule, over the chance of
        the time, for an f that is 0 at t = 0 and t = 1. `count` times are drawn together.

        Returns:
            None if the mean over points cannot stand for the integral: some times between 0.05 and 0.95 are never
            drawn, or two neighbouring times of the grid are more than 0.5 apart.
        """
        if self.law in ("levels", "bins"):
            return self._cells(t, count, levels)
        s, at = self.shift, t.double()
        ends = (0.0, 1.0) if self.law == "logit-normal" else (self.low, self.high)
        low, high = (s * end / (1 + (s - 1) * end) for end in ends)
        if low > REACH[0] or high < REACH[1]:
            return None
        before = at / (s - (s - 1) * at)  # the time before the shift
        slope = s / (1 + (s - 1) * before) ** 2
        if self.law == "logit-normal":
            logit = torch.logit(before.clamp(1e-6, 1 - 1e-6))
            inverse = before * (1 - before) * math.sqrt(2 * math.pi) * (logit**2 / 2).exp()
        elif self.law == "power":
            inverse = (self.high**2 - self.low**2) / (2 * before.clamp_min(1e-6))
        else:
            inverse = torch.full_like(at, self.high - self.low)
        return (inverse * slope).float()

    def _cells(self, t: Tensor, count: int, levels: Tensor) -> Tensor | None:
        last = len(levels) if self.last is None else self.last
        chosen = levels[self.first : last].double().cpu()
        nodes = torch.cat([torch.ones(1).double(), chosen, torch.zeros(1).double()])
        if max(above - below for above, below in pairwise(nodes.tolist())) > GAP:
            return None
        many, chance = len(chosen), torch.full((len(chosen),), 1 / len(chosen)).double()
        if self.law == "bins" and count <= many:
            edges = (torch.arange(count + 1, dtype=torch.float64) * many / count).floor().long()
            for low, high in pairwise(edges.tolist()):
                chance[low:high] = 1 / (count * (high - low))
        widths = (nodes[:-2] - nodes[2:]) / 2 / chance
        which = (t.double().cpu()[:, None] - chosen.float().double()).abs().argmin(1)
        return widths[which].float().to(t.device)


@dataclass(frozen=True)
class JumpTimes:
    """Where the jumps of one image start and end; its jumps are drawn together (MeanFlow, arXiv:2505.13447).

    The start t is the larger of two uniform numbers. The end s is the smaller one, or t itself, which trains the
    velocity, or 0, which trains jumps to data. The kinds are shared out evenly among the jumps of an image. A jump that
    would be longer than `longest` ends there. By default that is the sampler's longest step: it never makes a longer
    jump, and a loss of jumps is the noisier the longer they are (docs/few_step.md).
    """

    same: float = 0.5
    """share of jumps of length 0 (s = t)"""
    data: float = 0.25
    """share of jumps to data (s = 0)"""
    shift: float = 1.0
    """move both times towards noise (> 1)"""
    longest: float | None = None
    """longest jump t - s (none: the sampler's longest step; 1: any, as published)"""

    def __post_init__(self) -> None:
        between(self, 0, 1, "same", "data")
        if self.longest is not None and not 0 < self.longest <= 1:
            raise ValueError(f"the longest jump must be above 0 and at most 1, not {self.longest}")
        if self.same + self.data > 1:
            raise ValueError(
                f"the shares of jumps, same = {self.same} and data = {self.data}, are more than 1 together"
            )
        refuse_shift(self.shift, "jumps")

    def refuse(self, count: int, levels: int) -> None:
        """Never: any number of jumps can be drawn for any sampler."""

    def __call__(self, count: int, levels: Tensor, generator: torch.Generator) -> Tensor:
        """Draw float32 [count, 2] in [0, 1]: t and s <= t; `levels` [S] are the times at which the sampler jumped."""
        both = torch.rand(count, 2, generator=generator)
        kind = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
        t, s = both.amax(1), both.amin(1)
        s = torch.where(kind < self.same, t, torch.where(kind < self.same + self.data, 0.0, s))
        t, s = shifted(t, self.shift), shifted(s, self.shift)
        return torch.stack([t, torch.maximum(s, t - self._longest(levels))], 1)

    def _longest(self, levels: Tensor) -> float:
        if self.longest is not None or not len(levels):
            return 1.0 if self.longest is None else self.longest
        return (levels.float() - torch.cat([levels[1:].float(), levels.new_zeros(1).float()])).max().item()

    def width(self, t: Tensor, count: int, levels: Tensor) -> None:
        """None: a jump has two times, so a mean over jumps is no integral over one."""
