"""Copies that follow the policy: copy <- decay(step) * copy + (1 - decay(step)) * policy."""

from __future__ import annotations

from dataclasses import dataclass

from ..system.errors import not_negative


@dataclass(frozen=True)
class Decay:
    """The share of itself that a copy keeps when it follows after an iteration; `step` counts optimiser steps.

    Constant, or rising to it: min(retention, first + slope * max(0, step - start)). 0 copies the policy.
    """

    retention: float = 0.9
    slope: float | None = None
    """rise per optimiser step (None: constant from the beginning)"""
    start: int = 0
    """step from which it rises"""
    first: float = 0.0
    """share before it rises"""
    every: int = 1
    """optimiser steps between two updates of the copy (a multiple of the updates per iteration)"""

    def __post_init__(self) -> None:
        for share in (self.retention, self.first):
            if not 0 <= share < 1:
                raise ValueError(f"a copy must keep a share in [0, 1) of itself, not {share}")
        not_negative(self, "start", *(["slope"] if self.slope is not None else []))
        if self.every < 1:
            raise ValueError(f"a copy follows every 1 or more steps, not {self.every}")

    def __call__(self, step: int) -> float:
        if step % self.every:
            return 1.0
        if self.slope is None:
            return self.retention
        return min(self.retention, self.first + self.slope * max(0, step - self.start))


@dataclass(frozen=True)
class WarmDecay:
    """min((1 + step) / (10 + step), limit): short memory at first, for a copy that is evaluated."""

    limit: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.limit < 1:
            raise ValueError(f"a copy must keep a share in [0, 1) of itself, not {self.limit}")

    def __call__(self, step: int) -> float:
        return min((1 + step) / (10 + step), self.limit)
