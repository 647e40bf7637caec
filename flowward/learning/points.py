"""What a loss is evaluated on: noised samples or visited states, with all that the equation needs beside them.

A set of points exists only when asked: point number i is made when a minibatch takes it. Time and noise of a point
depend on its number alone, so it is the same point in whichever minibatch it lands. The points of a unit go into the
same optimiser step (those of an image, or images that are compared), `indivisible` ones into the same call of the loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from ..process.flow import interpolate, noise
from ..process.policy import Condition
from ..process.rollout import Rollout
from ..process.times import JumpTimes, Times
from ..system.errors import between
from ..system.streams import Key, generator
from .credit import members
from .rows import Batch, Rows, around

MOST_POINTS = 10_000  # per image, group or pair; published settings have at most 14


@dataclass(frozen=True)
class Points(Batch):
    """A minibatch of training points: noised samples, or visited states of pairs."""

    x0: Tensor  # [B, ...] finished sample
    eps: Tensor  # [B, ...] the noise in x_t
    advantage: Tensor  # [B] float32
    group: Tensor  # [B] number of the unit that a point belongs to
    exemplar: Tensor  # [B] bool: the sample is a given image
    delta: Tensor | None = None  # [B, ...] half the difference to the other sample of its pair
    width: Tensor | None = None  # [B] 1 / density of t (see Times.width); None: unknown

    def place(self, name: str) -> tuple[Tensor, Tensor, Condition]:
        """x, t and condition of a place: `ahead` and `behind` lie on the line through x0 and eps, a little off t."""
        if not name:
            return super().place(name)
        behind, ahead = around(self.t)
        t = {"behind": behind, "ahead": ahead}[name]
        return interpolate(self.x0, self.eps, t), t, self.condition


class PointSet(Protocol):
    """The points of an iteration."""

    def units(self) -> Sequence[Tensor]: ...  # the numbers of the points that are shuffled as one, unit by unit
    @property
    def in_order(self) -> bool: ...  # units are not shuffled: the first ones go into the first optimiser step
    @property
    def indivisible(self) -> int: ...  # so many consecutive points go into one call of the loss
    def prompts(self) -> Tensor: ...  # [U] the group of samples that each unit comes from
    def here(self, numbers: Tensor) -> Tensor: ...  # those of these points that this process trains on, in this order
    def __len__(self) -> int: ...
    def take(self, numbers: Tensor) -> Rows: ...  # the points with these numbers [B]
    def total(self, numbers: Tensor) -> float: ...  # what the sum of these points' losses is divided by


class MeanOfPoints:
    """The loss of an optimiser step is the mean over its points."""

    compares = False  # whether the loss compares images of a prompt

    def total(self, numbers: Tensor) -> float:
        return len(numbers)


def even_units(count: int, size: int) -> list[Tensor]:
    """The numbers of so many points, in units of `size` consecutive ones."""
    return list(torch.arange(count).split(size))


def unit_order(points: PointSet, updates: int, key: Key) -> list[Tensor]:
    """The units [u] of each optimiser step of an iteration: `updates` steps, or fewer where there are fewer units.

    Every step takes equally many units of each prompt, as far as they go; which ones depends on `key` and the prompt
    alone. So processes that hold different prompts have equal work. What is left of the prompts goes round.
    """
    units = len(points.units())
    if points.in_order:
        return list(torch.arange(units).chunk(updates))
    if updates == 1:
        return [torch.randperm(units, generator=generator(*key))]
    steps: list[list[Tensor]] = [[] for _ in range(updates)]
    (prompts, index), left = points.prompts().unique(return_inverse=True), 0
    for prompt, mine in zip(prompts.tolist(), members(index, len(prompts)), strict=True):
        mine = mine[torch.randperm(len(mine), generator=generator(*key, prompt))]
        even = len(mine) // updates * updates
        for step, part in zip(steps, mine[:even].view(updates, -1), strict=True):
            step.append(part)
        for unit in mine[even:].split(1):
            steps[left % updates].append(unit)
            left += 1
    return [torch.cat(step) for step in steps if sum(map(len, step))]


def renoised(
    rollout: Rollout, sample: Tensor, t: Tensor, eps: Tensor, group: Tensor, width: Tensor | None = None
) -> Points:
    """Samples with these numbers [B], noised at t [B] with eps [B, ...]; `width` as in Times.width."""
    x0 = rollout.x0[rollout.rows(sample)]
    given = torch.zeros(len(sample), dtype=torch.bool) if rollout.exemplar is None else rollout.exemplar[sample]
    return Points(
        x_t=interpolate(x0, eps.to(x0.device), t.to(x0.device)),
        t=t.to(x0.device),
        x0=x0,
        eps=eps.to(x0.device),
        advantage=rollout.advantage[sample].float().to(x0.device),
        condition=rollout.condition[rollout.group[sample]],
        group=group.to(x0.device),
        exemplar=given.to(x0.device),
        width=None if width is None else width.to(x0.device),
    )


def _renoised(noising: Draws, sample: Tensor, draw: Tensor, group: Tensor) -> Points:
    """Samples with these numbers [B], noised by these draws [B]."""
    t, eps = noising.at(draw)
    return renoised(noising.rollout, sample, t, eps, group, noising.width(t))


@dataclass(frozen=True)
class Draws:
    """The times and the noise of numbered draws; each draw's are its own."""

    rollout: Rollout
    draws: int  # that share one call of the time law
    times: Times | JumpTimes
    key: Key
    same_times: bool = False  # one call of the time law serves all

    def width(self, t: Tensor) -> Tensor | None:
        """1 / density of each time t [B]; see Times.width."""
        return self.times.width(t, self.draws, self.rollout.levels)

    def at(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """t [B] (of jumps t and s, [B, 2]) and eps [B, ...] of draws `numbers`; repeated numbers give the same."""
        word, *rest = self.key
        shape = self.rollout.x0.shape[1:]
        together: dict[int, Tensor] = {}
        noises: dict[int, Tensor] = {}
        t = []
        for number in numbers.tolist():
            owner, which = divmod(number, self.draws)
            owner = 0 if self.same_times else owner
            if owner not in together:
                stream = generator(f"{word} times", *rest, owner)
                together[owner] = self.times(self.draws, self.rollout.levels, stream)
            if number not in noises:
                noises[number] = torch.randn(shape, generator=generator(*self.key, number))
            t.append(together[owner][which])
        return torch.stack(t), torch.stack([noises[number] for number in numbers.tolist()])


@dataclass(frozen=True)
class PerSample(MeanOfPoints):
    """`unit` points of each sample: number i is one of sample i // unit. They go into the same optimiser step."""

    rollout: Rollout
    unit: int

    in_order = False

    @property
    def indivisible(self) -> int:
        return 1

    def __len__(self) -> int:
        return len(self.rollout) * self.unit

    def units(self) -> list[Tensor]:
        return even_units(len(self), self.unit)

    def prompts(self) -> Tensor:
        return self.rollout.group

    def here(self, numbers: Tensor) -> Tensor:
        return numbers[self.rollout.has(numbers // self.unit)]


@dataclass(frozen=True)
class Renoised(PerSample):
    """Number i is sample i // unit, noised for the (i % unit)th time."""

    noising: Draws

    def take(self, numbers: Tensor) -> Points:
        sample = numbers // self.unit
        return _renoised(self.noising, sample, numbers, sample)


@dataclass(frozen=True)
class Renoise:
    """Forward-process points: re-noise each finished sample at fresh times with fresh noise."""

    per_image: int = 2
    """training points per image and update"""
    times: Times = field(default_factory=Times)

    trains = "velocity"

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "per_image")

    def __call__(self, rollout: Rollout, key: Key) -> Renoised:
        """Raises ValueError if the sampler's grid is too coarse for the time distribution."""
        self.times.refuse(self.per_image, len(rollout.levels))
        return Renoised(rollout, self.per_image, Draws(rollout, self.per_image, self.times, key))


@dataclass(frozen=True)
class Averaged(Renoised):
    """`unit` points of an image, which the loss averages; the images of a prompt have the same times and noises."""

    @property
    def indivisible(self) -> int:
        return self.unit

    def take(self, numbers: Tensor) -> Points:
        sample = numbers // self.unit
        draw = self.rollout.group[sample] * self.unit + numbers % self.unit
        return _renoised(self.noising, sample, draw, sample)


@dataclass(frozen=True)
class RenoiseShared:
    """All draws of an image together; the images of a prompt share their times and noises (V-GRPO)."""

    draws: int = 4
    """draw so many times and noises per prompt"""
    times: Times = field(default_factory=lambda: Times("stratified"))

    trains = "velocity"

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "draws")

    def __call__(self, rollout: Rollout, key: Key) -> Averaged:
        """Raises ValueError if the sampler's grid is too coarse for the time distribution."""
        self.times.refuse(self.draws, len(rollout.levels))
        return Averaged(rollout, self.draws, Draws(rollout, self.draws, self.times, key))


@dataclass(frozen=True)
class Together(MeanOfPoints):
    """`members` [P, K] are compared, `draws` times each: number i is member i % K in draw i // K.

    All members of a draw have the same time and noise, so that only the images differ.
    """

    rollout: Rollout
    members: Tensor
    draws: int
    noising: Draws

    in_order = False
    compares = True

    @property
    def unit(self) -> int:
        return self.members.shape[1]

    @property
    def indivisible(self) -> int:
        return self.unit

    def __len__(self) -> int:
        return self.members.numel() * self.draws

    def units(self) -> list[Tensor]:
        return even_units(len(self), self.unit)

    def prompts(self) -> Tensor:
        return self.rollout.group[self.members[:, 0]].repeat_interleave(self.draws)

    def here(self, numbers: Tensor) -> Tensor:
        return numbers[self.rollout.has(self._samples(numbers))]

    def _samples(self, numbers: Tensor) -> Tensor:
        return self.members[numbers // self.unit // self.draws, numbers % self.unit]

    def take(self, numbers: Tensor) -> Points:
        draw, sample = numbers // self.unit, self._samples(numbers)
        return _renoised(self.noising, sample, draw, draw)


@dataclass(frozen=True)
class RenoiseGroups:
    """Whole prompt groups at a time (DGPO, CRD)."""

    draws: int = 2
    """draw so many times and noises per group"""
    times: Times = field(default_factory=Times)
    same_times: bool = False
    """use the same times for all groups of an iteration (DGPO)"""

    trains = "velocity"

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "draws")

    def __call__(self, rollout: Rollout, key: Key) -> Together:
        """Raises ValueError if groups differ in size, or the grid is too coarse for the time distribution."""
        self.times.refuse(self.draws, len(rollout.levels))
        noising = Draws(rollout, self.draws, self.times, key, self.same_times)
        return Together(rollout, rollout.by_group(), self.draws, noising)


@dataclass(frozen=True)
class RenoisePairs:
    """The best and the worst sample of each group (DPO)."""

    draws: int = 2
    """draw so many times and noises per pair"""
    times: Times = field(default_factory=Times)

    trains = "velocity"

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "draws")

    def __call__(self, rollout: Rollout, key: Key) -> Together:
        """Raises ValueError if groups differ in size, or the grid is too coarse for the time distribution."""
        self.times.refuse(self.draws, len(rollout.levels))
        members = rollout.by_group()
        advantage = rollout.advantage[members]
        ends = torch.stack([advantage.argmax(1), advantage.argmin(1)], 1)
        return Together(rollout, members.gather(1, ends), self.draws, Draws(rollout, self.draws, self.times, key))


@dataclass(frozen=True)
class VisitedStates(MeanOfPoints):
    """Number i is state i % S of sample i // S, with the velocity that was recorded there."""

    rollout: Rollout
    partner: Tensor  # [N] number of the other sample of each one's pair

    unit = indivisible = 1
    in_order = False

    def __len__(self) -> int:
        return len(self.rollout) * len(self.rollout.levels)

    def units(self) -> list[Tensor]:
        return even_units(len(self), self.unit)

    def prompts(self) -> Tensor:
        return self.rollout.group.repeat_interleave(len(self.rollout.levels))

    def here(self, numbers: Tensor) -> Tensor:
        return numbers[self.rollout.has(numbers // len(self.rollout.levels))]

    def take(self, numbers: Tensor) -> Points:
        """States are gathered for these points alone: all of an epoch at once would not fit for large models."""
        rollout = self.rollout
        if rollout.states is None or rollout.velocities is None:
            raise ValueError("this algorithm trains on visited states, and images from files have none")
        sample, level = numbers // len(rollout.levels), numbers % len(rollout.levels)
        device, own, other = rollout.x0.device, rollout.rows(sample), rollout.rows(self.partner[sample])
        x_t, v = rollout.states[own, level].to(device), rollout.velocities[own, level].to(device)
        t = rollout.levels[level].float().to(device)
        return Points(
            x_t=x_t,
            t=t,
            x0=rollout.x0[own],
            eps=noise(x_t, t, v),
            advantage=rollout.advantage[sample].float().to(device),
            condition=rollout.condition[rollout.group[sample]],
            group=rollout.group[sample].to(device),
            exemplar=torch.zeros(len(sample), dtype=torch.bool, device=device),
            delta=(rollout.x0[own] - rollout.x0[other]) / 2,
            width=Times("levels").width(t, len(rollout.levels), rollout.levels),
            known={"old": v},
        )


@dataclass(frozen=True)
class Visited:
    """Every state that paired samples passed through (FDFO)."""

    def __call__(self, rollout: Rollout, key: Key) -> VisitedStates:
        """Raises ValueError if a group is not a pair."""
        members = rollout.by_group()
        if members.shape[1] != 2:
            raise ValueError(f"samples are compared in pairs: group_size must be 2, not {members.shape[1]}")
        partner = torch.empty(len(rollout), dtype=torch.long)
        partner[members] = members.flip(1)
        return VisitedStates(rollout, partner)
