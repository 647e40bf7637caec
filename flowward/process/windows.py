"""Which steps of a sampler are random, and are trained: a window that moves with the iterations (MixGRPO)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, exp
from typing import Literal, get_args

import torch

from ..system.errors import not_negative, one_of, positive
from ..system.streams import generator

Order = Literal["progressive", "linear", "exponential", "random", "frozen"]


@dataclass(frozen=True)
class Window:
    """Some consecutive steps of a sampler, from a start that depends on the iteration alone.

    A position is held for `every` iterations (`progressive`), for a time that falls linearly to 1 (`linear`), or for
    ceil(every exp(-decay max(0, start - knee))) (`exponential`); then the window moves on by `stride`, and after its
    last position it returns to the first, or stays. `random` draws a position for every iteration, `frozen` keeps the
    first. The window never leaves its range, so that it is never empty, and is the same on every rank.
    (Li et al., 2025, arXiv:2507.21802. Their code lets it run out of the grid, where nothing is trained.)
    """

    size: int | None = None
    """None: all the steps that there are"""
    order: Order = "progressive"
    every: int = 25
    """iterations per position"""
    stride: int = 1
    low: int = 0
    """first step that may be in it"""
    high: int | None = None
    """first step beyond it (None: the last step, which has no noise to learn from)"""
    knee: int = 13
    decay: float = 0.1
    roll_back: bool = True
    """return to the first position after the last"""

    def __post_init__(self) -> None:
        positive(self, "every", "stride", *(["size"] if self.size is not None else []))
        not_negative(self, "knee", "decay")
        one_of("order of a window", self.order, get_args(Order))
        if self.low < 0:
            raise ValueError(f"a window starts at step 0 or later, not {self.low}")

    def positions(self, steps: int) -> tuple[list[int], int]:
        """Every start in a sampler of so many steps, in order, and the size.

        Raises:
            ValueError: the window does not fit.
        """
        high = steps - 1 if self.high is None else self.high
        size = max(1, high - self.low) if self.size is None else self.size
        if high > steps - 1:
            raise ValueError(
                f"the window reaches to step {high - 1}, but of {steps} steps the last that can be trained is number "
                f"{steps - 2}"
            )
        if self.low + size > high:
            raise ValueError(
                f"a window of {size} step{'s' * (size > 1)} does not fit into steps {self.low} to {high - 1} of a "
                f"sampler with {steps}"
            )
        starts = list(range(self.low, high - size + 1, self.stride))
        return (starts[:1] if self.order == "frozen" else starts), size

    def holds(self, starts: list[int]) -> list[int]:
        """Iterations that each position is held for."""
        last = max(1, len(starts) - 1)
        match self.order:
            case "linear":
                return [round(self.every + (1 - self.every) * number / last) for number in range(len(starts))]
            case "exponential":
                return [max(1, ceil(self.every * exp(-self.decay * max(0, at - self.knee)))) for at in starts]
            case _:
                return [self.every] * len(starts)

    def steps(self, steps: int, seed: int, iteration: int) -> range:
        """The window of an iteration (counted from 0) in a sampler of so many steps."""
        starts, size = self.positions(steps)
        if self.order == "random":
            start = starts[int(torch.randint(len(starts), (1,), generator=generator("window", seed, iteration)))]
        else:
            holds = self.holds(starts)
            left = iteration % sum(holds) if self.roll_back else min(iteration, sum(holds) - 1)
            start = next(start for start, end in zip(starts, accumulate(holds), strict=True) if left < end)
        return range(start, start + size)
