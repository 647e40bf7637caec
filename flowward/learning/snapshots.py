"""How copies of the policy (old policy, EMA) are updated: copy <- decay(step) * copy + (1 - decay(step)) * policy."""

from __future__ import annotations

from dataclasses import dataclass

from ..system.errors import not_negative


@dataclass(frozen=True)
class Decay:
    """EMA decay of a copy, which is updated after iterations. `step` counts optimiser steps.

    The decay is `retention`, or rises to it: min(retention, first + slope * max(0, step - start)). Decay 0 copies the
    policy.
    """

    retention: float = 0.9
    """EMA decay of the copy (final value if it rises)"""
    slope: float | None = None
    """increase of the decay per optimiser step (None: constant)"""
    start: int = 0
    """optimiser step at which the decay starts to rise"""
    first: float = 0.0
    """decay before it rises"""
    every: int = 1
    """update the copy every N optimiser steps (a multiple of the updates per iteration)"""

    def __post_init__(self) -> None:
        for name, share in (("retention", self.retention), ("first", self.first)):
            if not 0 <= share < 1:
                raise ValueError(f"{name}, the EMA decay of a copy, must lie in [0, 1), not {share}")
        not_negative(self, "start", *(["slope"] if self.slope is not None else []))
        if self.every < 1:
            raise ValueError(f"every, the optimiser steps between updates of a copy, must be >= 1, not {self.every}")

    def __call__(self, step: int) -> float:
        if step % self.every:
            return 1.0
        if self.slope is None:
            return self.retention
        return min(self.retention, self.first + self.slope * max(0, step - self.start))


@dataclass(frozen=True)
class WarmDecay:
    """EMA decay min((1 + step) / (10 + step), limit) with a warm-up, for the copy that is evaluated."""

    limit: float = 0.9
    """largest EMA decay"""

    def __post_init__(self) -> None:
        if not 0 <= self.limit < 1:
            raise ValueError(f"the EMA decay must lie in [0, 1), not {self.limit}")

    def __call__(self, step: int) -> float:
        return min((1 + step) / (10 + step), self.limit)
