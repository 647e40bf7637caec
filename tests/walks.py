"""Rollouts of trees over an affine flow, with random rewards, and the steps to train on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import ALGORITHMS
from flowward.algorithms.policy_gradient import PolicyGradient
from flowward.process.noise import Noise, normal
from flowward.process.policy import Condition, Models
from flowward.process.rollout import Drawn, Rollout, Steps

SHAPE = (2, 3)
FAMILY = [name for name, kind in ALGORITHMS.items() if issubclass(kind, PolicyGradient)]
family = pytest.mark.parametrize("name", FAMILY)


def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Of an affine flow that knows its prompt; element by element, so that a row does not depend on its batch."""
    return 0.5 * x + (t + condition.tensors["id"]).view(-1, 1, 1)


class Counted:
    """How many rows were asked for, and when."""

    def __init__(self) -> None:
        self.rows = 0
        self.times: list[float] = []

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        self.rows += len(x)
        self.times += t.tolist()
        return velocity(x, t, condition)


def keys(prompts: int, size: int) -> list[tuple[str | int, ...]]:
    return [("noise", 0, 7, prompt, sample) for prompt in range(prompts) for sample in range(size)]


def drawn(draw: Any, prompts: int = 2, size: int | None = None, only: Any = None, field: Any = velocity) -> Drawn:
    """`size` samples of each prompt, or those of them that `only` numbers."""
    names = keys(prompts, size or draw.leaves)
    names = [names[number] for number in only] if only is not None else names
    condition = Condition({"id": torch.tensor([float(key[3]) for key in names])})
    found: Drawn = draw(field, condition, Noise(SHAPE, tuple(names)))
    return found


def random_steps(found: Drawn) -> Steps:
    assert found.steps is not None
    return found.steps


def same(one: Steps, two: Steps) -> bool:
    names = ("x", "v", "z", "sample", "number")
    return all(torch.equal(getattr(one, name), getattr(two, name)) for name in names)


def rollout(algorithm: Any, prompts: int = 2, size: int | None = None, iteration: int = 0) -> Rollout:
    """With random rewards."""
    tree = algorithm.rollout.at(0, iteration)
    size = size or tree.leaves
    group = torch.arange(prompts).repeat_interleave(size)
    found = drawn(tree, prompts, size)
    done = Rollout.of([found], Condition({"id": torch.arange(float(prompts))}), group, algorithm.rollout.levels)
    reward = normal((), (("reward", number) for number in range(len(group))))
    return replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort))


def everything(algorithm: Any, done: Rollout) -> Any:
    points = algorithm.points(done, ("points", 0))
    return points.take(torch.arange(len(points)))


def loss(algorithm: Any, batch: Any) -> Tensor:
    """Off policy, before and after the first update."""
    models = Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity)
    parts = [algorithm.loss(models, replace(batch, fresh=fresh))[0] for fresh in (False, True)]
    return torch.stack(parts)
