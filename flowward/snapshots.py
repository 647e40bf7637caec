"""Copies that follow the policy: copy <- decay(step) * copy + (1 - decay(step)) * policy."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Decay:
    """A constant share of itself that a copy keeps at each refresh; 0 copies the policy."""

    retention: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.retention < 1:
            raise ValueError(f"a copy must keep a share in [0, 1) of itself, not {self.retention}")

    def __call__(self, step: int) -> float:
        return self.retention


@dataclass(frozen=True)
class WarmDecay:
    """min((1 + step) / (10 + step), limit): short memory at first, for a copy that is evaluated."""

    limit: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.limit < 1:
            raise ValueError(f"a copy must keep a share in [0, 1) of itself, not {self.limit}")

    def __call__(self, step: int) -> float:
        return min((1 + step) / (10 + step), self.limit)
