"""How the times of training points are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal, get_args

import torch
from torch import Tensor

from ..system.errors import one_of
from .flow import shifted

Law = Literal["uniform", "stratified", "logit-normal", "levels", "bins"]
FLOOR = 0.01  # of logit-normal times: a time of 0 teaches nothing


@dataclass(frozen=True)
class Times:
    """The times of one image's points, drawn together.

    `uniform`: independent in [low, high] (AdvantageFlow), then shifted. `stratified`: one in each of as many equal
    parts of [low, high], then shifted. `logit-normal`: the same of the quantiles of a normal law, through a sigmoid,
    then shifted (Esser et al., 2024, arXiv:2403.03206). `levels`: distinct levels of the sampler's own grid, of those
    numbered first to last - 1 (DiffusionNFT: 9 of its 10). `bins`: one level of each of as many equal parts of that
    range (AWM). Order is random where it could matter.
    """

    law: Law = "uniform"
    low: float = 0.0
    """of `uniform` and `stratified`, before the shift"""
    high: float = 1.0
    """of the same"""
    shift: float = 1.0
    """> 1 moves times towards noise; for `levels` and `bins` it is that of the sampler's grid"""
    first: int = 0
    """of `levels` and `bins`"""
    last: int | None = None
    """of the same; None: to the end of the grid"""

    def __post_init__(self) -> None:
        one_of("law of times", self.law, get_args(Law))
        if not 0 <= self.low < self.high <= 1:
            raise ValueError(f"times need 0 <= low < high <= 1, not low = {self.low} and high = {self.high}")
        if not 0 < self.shift < inf:
            raise ValueError(f"the shift of times must be positive and finite, not {self.shift}")
        if self.first < 0 or (self.last is not None and self.last <= self.first):
            raise ValueError(f"levels need 0 <= first < last, not first = {self.first} and last = {self.last}")

    def refuse(self, count: int, levels: int) -> None:
        """Raises ValueError where `count` times cannot be drawn from a grid of `levels`."""
        last = levels if self.last is None else self.last
        if self.law in ("levels", "bins") and (last > levels or count > last - self.first):
            raise ValueError(
                f"{count} distinct times per image cannot be drawn from levels {self.first} to {last - 1} of a sampler "
                f"with {levels} steps"
            )

    def __call__(self, count: int, levels: Tensor, generator: torch.Generator) -> Tensor:
        """float32 [count] in [0, 1]; `levels` [S] are the times at which the sampler asked the network."""
        last = len(levels) if self.last is None else self.last
        if self.law == "levels":
            chosen = torch.randperm(last - self.first, generator=generator)[:count]
            return levels[self.first + chosen].float()
        if self.law == "bins":
            edges = self.first + torch.arange(count + 1) * (last - self.first) // count
            within = torch.rand(count, generator=generator, dtype=torch.float64) * edges.diff()
            return levels[edges[:-1] + within.long()].float()
        part = torch.rand(count, generator=generator)
        if self.law == "uniform":
            return shifted(self.low + (self.high - self.low) * part, self.shift)
        part = (torch.randperm(count, generator=generator) + part) / count
        if self.law == "stratified":
            return shifted(self.low + (self.high - self.low) * part, self.shift)
        normal = torch.special.ndtri(part.double().clamp(1e-6, 1 - 1e-6))
        return shifted(torch.sigmoid(normal), self.shift).clamp_min(FLOOR).float()
