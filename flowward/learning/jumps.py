"""Points of models with two times: jumps, from a noised sample at t to an earlier time s."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor

from ..process.rollout import Rollout
from ..process.times import JumpTimes
from ..system.errors import between
from ..system.streams import Key
from .points import MOST_POINTS, Draws, Points, Renoised, renoised

Trains = Literal["velocity", "jumps", "steps"]
"""What points train. `velocity`: samples are noised again, and the loss takes the network for E[u | x_t]. `jumps`: the
same for average velocities, of a model with two times. `steps`: states of the sampler's own steps, so the loss asks
nothing of the network but to have drawn them."""


def trained_by(points: object) -> Trains:
    """What points say in their optional attribute `trains`; `steps` if they say nothing."""
    found: Trains = getattr(points, "trains", "steps")
    return found


@dataclass(frozen=True)
class Jumps(Renoised):
    """Number i is a jump of sample i // unit, noised for the (i % unit)th time, to an earlier time."""

    def take(self, numbers: Tensor) -> Points:
        sample = numbers // self.unit
        times, eps = self.noising.at(numbers)
        points = renoised(self.rollout, sample, times[:, 0], eps, sample)
        return replace(points, condition=points.condition.until(times[:, 1].to(points.t.device)))


@dataclass(frozen=True)
class RenoiseJumps:
    """Jumps of a model with two times: re-noise each finished sample at a fresh time, and jump to a fresh end."""

    per_image: int = 2
    """jumps per image and update"""
    times: JumpTimes = field(default_factory=JumpTimes)

    trains = "jumps"

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "per_image")

    def __call__(self, rollout: Rollout, key: Key) -> Jumps:
        """Never refuses a sampler."""
        return Jumps(rollout, self.per_image, Draws(rollout, self.per_image, self.times, key))
