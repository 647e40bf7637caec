"""Points of on-policy distillation: states of the student, each with the weight of its loss.

A state was passed by the student's own rollout, or is a finished sample of the student that is noised again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..process.rollout import Rollout, Steps, places
from ..process.times import Times
from ..system.errors import between, one_of
from ..system.streams import Key, generator
from .points import MOST_POINTS, Draws, PerSample, Renoised
from .rows import Batch

Where = Literal["visited", "renoised"]
EARLIEST = 0.05  # below, (1 - t) / t stays what it is here: it would grow without a bound


@dataclass(frozen=True)
class State(Batch):
    """B states, with the weight of each in the loss."""

    weight: Tensor  # [B] float32


def step_weight(table: Tensor) -> Tensor:
    """The weight w of each step [S] in w mean((v - v_T)^2), from t, s, Q and sigma [S, 4].

    A random step: Q^2 / (2 sigma^2), the KL of the step per element. A step of the ODE: (t - s)^2 / 2, half the squared
    distance of the next states (DiffusionOPD, arXiv:2605.15055, Eq. 11 and 12).
    """
    _, _, q, sigma = table.unbind(1)
    return q**2 / (2 * torch.where(sigma > 0, sigma, 1.0) ** 2)


def time_weight(t: Tensor) -> Tensor:
    """(1 - t) / t for t >= 0.05, [B]: at uniform times, D w mean((v_p - v_q)^2) is KL(p || q) in nats on average."""
    return (1 - t) / t.clamp_min(EARLIEST)


@dataclass(frozen=True)
class StateSet(PerSample):
    """Number i is a state of sample i // unit."""

    at: Callable[[Tensor], State]  # numbers [B] -> their states

    def take(self, numbers: Tensor) -> State:
        return self.at(numbers)


@dataclass(frozen=True)
class States:
    """States of the student: those that its rollout passed, or its finished samples, noised again."""

    where: Where = "visited"
    """train at states that the rollout `visited`, or at finished samples that are noised again (`renoised`)"""
    per_image: int = 5
    """training points per image and update; visited ones are drawn without repetition"""
    times: Times = field(default_factory=lambda: Times(low=EARLIEST))

    def __post_init__(self) -> None:
        between(self, 1, MOST_POINTS, "per_image")
        one_of("kind of states", self.where, get_args(Where))

    def __call__(self, rollout: Rollout, key: Key) -> StateSet:
        """Raises ValueError if there are too few visited states, or the grid is too coarse for the times."""
        if self.where == "renoised":
            self.times.refuse(self.per_image, len(rollout.levels))
            noised = Renoised(rollout, self.per_image, Draws(rollout, self.per_image, self.times, key))
            return StateSet(rollout, self.per_image, lambda numbers: _noised(noised, numbers))
        steps = rollout.steps
        if steps is None:
            raise ValueError("this algorithm trains on visited states, and images from files have none")
        if self.per_image > steps.per_root:
            raise ValueError(
                f"per_image asks for {self.per_image} states of each image, but the rollout keeps {steps.per_root}: "
                f"lower it, or use more steps"
            )
        chosen = _chosen(len(rollout), self.per_image, steps.per_root, key)
        return StateSet(rollout, self.per_image, lambda numbers: _visited(rollout, steps, chosen.flatten()[numbers]))


def _chosen(samples: int, many: int, states: int, key: Key) -> Tensor:
    """The rows [N, many] of the visited states to train on: of each sample some, which depend on its number alone."""
    word, *rest = key
    first = torch.arange(samples)[:, None] * states
    if many == states:
        return first + torch.arange(states)
    each = [torch.randperm(states, generator=generator(f"{word} states", *rest, n))[:many] for n in range(samples)]
    return first + torch.stack(each)


def _visited(rollout: Rollout, steps: Steps, rows: Tensor) -> State:
    """States with these rows; their weights are divided by the mean over steps, so that all sizes of steps are alike
    to AdamW, whose epsilon is not.
    """
    device, number = rollout.x0.device, steps.number[rows]
    weight = step_weight(steps.table)
    return State(
        x_t=steps.x[places(steps.here, rows)].to(device),
        t=steps.table[number, 0].float().to(device),
        condition=rollout.condition[rollout.group[steps.sample[rows, 0, 0]]],
        weight=(weight / weight.mean())[number].float().to(device),
    )


def _noised(noised: Renoised, numbers: Tensor) -> State:
    points = noised.take(numbers)
    return State(points.x_t, points.t, points.condition, time_weight(points.t))
