"""Points for losses that differentiate a reward: states from which a sample is made again, or a trajectory."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..process.rollout import Rollout
from ..process.times import Times
from ..system.errors import between
from ..system.streams import Key, generator
from .points import MOST_POINTS, Draws, PerSample
from .rows import Batch


@dataclass(frozen=True)
class Tails(Batch):
    """B states, and the times of the Euler steps from each to its sample."""

    way: Tensor  # [B, K + 1] float64, decreasing from t to 0


@dataclass(frozen=True)
class Nudges(Batch):
    """B noised samples, and where one small step leads from each."""

    x0: Tensor  # [B, ...]
    eps: Tensor  # [B, ...]
    until: Tensor  # [B] the time after the step


@dataclass(frozen=True)
class Visits(Batch):
    """The states of whole trajectories, S consecutive rows each, in the order of their steps."""

    x0: Tensor  # [B, ...] the sample that the trajectory ends in
    until: Tensor  # [B] float64, the time after the step from this state
    number: Tensor  # [B] of the step, counted from the first recorded one
    chosen: Tensor  # [B] bool: whether the policy is trained at this state


def _states(rollout: Rollout) -> Tensor:
    """The recorded states [n, K, ...]; raises ValueError if there are none."""
    if rollout.states is None:
        raise ValueError("this algorithm goes on from states of its own samples, and images from files have none")
    return rollout.states


def _kept(rollout: Rollout) -> int | None:
    """How many states of each sample are recorded; None in a process that has no samples.

    Raises:
        ValueError: there are samples, but no states.
    """
    idle = rollout.here is not None and not len(rollout.here)
    return None if rollout.states is None and idle else _states(rollout).shape[1]


@dataclass(frozen=True)
class Endings(PerSample):
    """Number i is a state of sample i: of its last recorded ones, number `place[i]`."""

    place: Tensor  # [N]
    jump: bool  # one step to 0, instead of all that are left

    def take(self, numbers: Tensor) -> Tails:
        """States are gathered for these points alone."""
        rollout, device = self.rollout, self.rollout.x0.device
        states, place = _states(rollout), self.place[numbers]
        levels = rollout.levels[len(rollout.levels) - states.shape[1] :].double()
        t = levels[place]
        way = torch.stack([t, torch.zeros_like(t)], 1)
        if not self.jump:
            way = torch.cat([levels, levels.new_zeros(1)]).expand(len(numbers), -1)
        return Tails(
            x_t=states[rollout.rows(numbers), place].to(device),
            t=t.float().to(device),
            condition=rollout.condition[rollout.group[numbers]],
            way=way.to(device),
        )


@dataclass(frozen=True)
class LastSteps:
    """The first recorded state of each sample, and all steps from there (DRaFT)."""

    def __call__(self, rollout: Rollout, key: Key) -> Endings:
        """Raises ValueError if the rollout has no states."""
        _kept(rollout)
        return Endings(rollout, 1, torch.zeros(len(rollout), dtype=torch.long), jump=False)


@dataclass(frozen=True)
class LateStep:
    """One of the recorded states of each sample, drawn at random, and one step from there to 0 (ReFL)."""

    def __call__(self, rollout: Rollout, key: Key) -> Endings:
        """Raises ValueError if the rollout has no states."""
        place = torch.randint(_kept(rollout) or 1, (len(rollout),), generator=generator(*key))
        return Endings(rollout, 1, place, jump=True)


@dataclass(frozen=True)
class Nudged(PerSample):
    """Number i is sample i // unit, noised for the (i % unit)th time; steps go down, then up, then down..."""

    noising: Draws
    step: float
    upward: bool

    def take(self, numbers: Tensor) -> Nudges:
        sample = numbers // self.unit
        rollout, device = self.rollout, self.rollout.x0.device
        t, eps = (each.to(device) for each in self.noising.at(numbers))
        up = (numbers % self.unit % 2 == 1) & self.upward
        x0 = rollout.x0[rollout.rows(sample)]
        share = t.view(-1, *[1] * (x0.ndim - 1))
        return Nudges(
            x_t=(1 - share) * x0 + share * eps,
            t=t,
            condition=rollout.condition[rollout.group[sample]],
            x0=x0,
            eps=eps,
            until=t + torch.where(up.to(device), self.step, -self.step),
        )


@dataclass(frozen=True)
class SmallSteps:
    """Re-noise each sample with a known noise, and take a small step from there (SRPO)."""

    per_image: int = 2
    """training points per image: with `upward`, every second one is a step up"""
    low: float = 0.2
    """smallest time that samples are noised to"""
    high: float = 0.8
    """largest time that samples are noised to"""
    step: float = 0.05
    """length of the step, in time"""
    upward: bool = True
    """take steps towards noise too, with the score's sign changed"""

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "per_image")
        if not 0 < self.step <= self.low < self.high <= 1 - 2 * self.step:
            raise ValueError(
                "small steps need 0 < step <= low < high <= 1 - 2 step, so that they end in (0, 1), not "
                f"step = {self.step}, low = {self.low}, high = {self.high}"
            )

    def __call__(self, rollout: Rollout, key: Key) -> Nudged:
        times = Times("uniform", self.low, self.high)
        return Nudged(rollout, self.per_image, Draws(rollout, self.per_image, times, key), self.step, self.upward)


@dataclass(frozen=True)
class Trajectories(PerSample):
    """Number i is state i % S of sample i // S; the states of a sample stay together."""

    chosen: Tensor  # [N, S] bool

    @property
    def indivisible(self) -> int:
        return self.unit

    def total(self, numbers: Tensor) -> float:
        """Only states that are trained on count."""
        return max(1, int(self.chosen[numbers // self.unit, numbers % self.unit].sum()))

    def take(self, numbers: Tensor) -> Visits:
        """States are gathered for these points alone."""
        rollout, device = self.rollout, self.rollout.x0.device
        sample, state = numbers // self.unit, numbers % self.unit
        own, levels = rollout.rows(sample), rollout.levels.double()
        until = torch.cat([levels[1:], levels.new_zeros(1)])
        return Visits(
            x_t=_states(rollout)[own, state].to(device),
            t=levels[state].float().to(device),
            condition=rollout.condition[rollout.group[sample]],
            x0=rollout.x0[own],
            until=until[state].to(device),
            number=state.to(device),
            chosen=self.chosen[sample, state].to(device),
        )


@dataclass(frozen=True)
class WholeTrajectories:
    """All states of each sample; the policy is trained at some of them (Adjoint Matching)."""

    trained: int | None = None
    """train at so many states of each image, drawn at random (none: all)"""

    def __post_init__(self) -> None:
        if self.trained is not None:
            between(self, 1, MOST_POINTS, "trained")

    def __call__(self, rollout: Rollout, key: Key) -> Trajectories:
        """Raises ValueError if not all states were recorded, or there are fewer than asked for."""
        count, states = len(rollout.levels), _kept(rollout)
        if states not in (None, count):
            raise ValueError(
                f"whole trajectories have {count} states, but only {states} were recorded: leave "
                "--algorithm.rollout.kept at none"
            )
        many = self.trained or count
        if many > count:
            raise ValueError(f"points.trained asks for {many} states per image, but a trajectory has {count}")
        order = torch.rand(len(rollout), count, generator=generator(*key)).argsort(1)
        return Trajectories(rollout, count, order < many)
