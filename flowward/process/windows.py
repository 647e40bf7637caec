"""The window of random, trained steps in a sampler; it moves during training (MixGRPO)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import ceil, exp
from typing import Literal, get_args

import torch

from ..system.errors import not_negative, one_of, positive
from ..system.streams import Key, generator

Order = Literal["progressive", "linear", "exponential", "random", "per-prompt", "frozen"]


@dataclass(frozen=True)
class Window:
    """A range of consecutive steps of a sampler. Its start depends on the iteration alone, or also on the prompt.

    The window stays at a position for `every` iterations (`progressive`). With `linear`, this number decreases
    linearly to 1. With `exponential`, it is ceil(every exp(-decay max(0, start - knee))). The window then moves by
    `stride`. After its last position it returns to the first, or stays there. `random` draws a position for
    every iteration, `per-prompt` one for every prompt of an iteration (Flash-GRPO), `frozen` keeps the first. The
    window stays in its range, is never empty, and is the same on every rank. (Li et al., 2025, arXiv:2507.21802. In
    their code it can leave the grid, and then nothing is trained.)
    """

    size: int | None = None
    """random steps per iteration (None: all)"""
    order: Order = "progressive"
    """how the window moves: at a constant, linear or exponential pace, randomly (per iteration or prompt), or not"""
    every: int = 25
    """iterations per position"""
    stride: int = 1
    """steps by which the window moves"""
    low: int = 0
    """first step that the window may contain"""
    high: int | None = None
    """end of the window's range, exclusive (None: the last step, which is never random)"""
    knee: int = 13
    """position from which `exponential` stays shorter"""
    decay: float = 0.1
    """rate at which `exponential` shortens its stays"""
    roll_back: bool = True
    """return to the first position after the last"""

    def __post_init__(self) -> None:
        positive(self, "every", "stride", *(["size"] if self.size is not None else []))
        not_negative(self, "knee", "decay")
        one_of("window order", self.order, get_args(Order))
        if self.low < 0:
            raise ValueError(f"low, the first step of the window, must be at least 0, not {self.low}")

    def positions(self, steps: int) -> tuple[list[int], int]:
        """All starts of the window in a sampler with this many steps, in order, and its size.

        Raises:
            ValueError: the window does not fit.
        """
        high = steps - 1 if self.high is None else self.high
        size = max(1, high - self.low) if self.size is None else self.size
        if high > steps - 1:
            raise ValueError(
                f"the window reaches step {high - 1}, but with {steps} steps the last trainable one is number "
                f"{steps - 2}; lower high or use more steps"
            )
        if self.low + size > high:
            raise ValueError(
                f"a window of {size} step{'s' * (size > 1)} does not fit into steps {self.low} to {high - 1} of "
                f"{steps} sampling steps; use a smaller window or more steps"
            )
        starts = list(range(self.low, high - size + 1, self.stride))
        return (starts[:1] if self.order == "frozen" else starts), size

    def holds(self, starts: list[int]) -> list[int]:
        """Number of iterations at each position."""
        last = max(1, len(starts) - 1)
        match self.order:
            case "linear":
                return [round(self.every + (1 - self.every) * number / last) for number in range(len(starts))]
            case "exponential":
                return [max(1, ceil(self.every * exp(-self.decay * max(0, at - self.knee)))) for at in starts]
            case _:
                return [self.every] * len(starts)

    def steps(self, steps: int, seed: int, iteration: int) -> range:
        """The window of an iteration (counted from 0) in a sampler with this many steps."""
        starts, size = self.positions(steps)
        if self.order in ("random", "per-prompt"):
            return self.drawn(steps, (seed, iteration))
        holds = self.holds(starts)
        left = iteration % sum(holds) if self.roll_back else min(iteration, sum(holds) - 1)
        start = next(start for start, end in zip(starts, accumulate(holds), strict=True) if left < end)
        return range(start, start + size)

    def drawn(self, steps: int, key: Key) -> range:
        """The window at a random position; the key names an iteration, or a prompt of an iteration."""
        starts, size = self.positions(steps)
        start = starts[int(torch.randint(len(starts), (1,), generator=generator("window", *key)))]
        return range(start, start + size)
