"""Runs of the tiny model, of three iterations with eight images each unless told otherwise, and their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flowward import ALGORITHMS, models, prompts
from flowward.algorithms import AdvantageFlow
from flowward.learning.points import Renoise, RenoiseGroups, RenoisePairs, RenoiseShared
from flowward.process.completions import CompletedChain
from flowward.process.flow import TimeGrid
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Policy
from flowward.process.rollout import Sampler
from flowward.process.splits import Splits
from flowward.training import batches
from flowward.training.run import Run
from flowward.training.trainer import Trainer

TEXTS = ("a circle", "a red square", "two rings", "a cross above a ring", "a diamond and a triangle")
FEW = 4  # steps of `few_steps`


def bright(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.mean((1, 2, 3))


def same(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return torch.full((len(images),), 0.3)


def algorithm(**changes: Any) -> AdvantageFlow:
    return AdvantageFlow(**{"rollout": Sampler(steps=2), "points": Renoise(1), **changes})


def few(draw: Any) -> Any:
    """A rollout of four steps, with samples in roots that divide four."""
    if isinstance(draw, Splits):
        return replace(draw, steps=FEW, splits=(0, 1), guidance=1.0)
    if isinstance(draw, Chain):
        size = 1 if isinstance(draw, CompletedChain) else min(2, draw.window.size or 3)
        return replace(draw, steps=FEW, window=replace(draw.window, size=size, high=None, every=1), guidance=1.0)
    if isinstance(draw, Branches):  # one place with two children on two grids, or two places with two children
        return replace(
            draw, steps=FEW, high=2 // min(2, len(draw.strides)), fanout=2, strides=draw.strides[:2], guidance=1.0
        )
    return replace(draw, steps=FEW)


def few_steps(name: str, **changes: Any) -> Any:
    """Any algorithm, with few steps and points."""
    algorithm = ALGORITHMS[name]()
    points = {
        Renoise: Renoise(2),
        RenoiseGroups: RenoiseGroups(2),
        RenoisePairs: RenoisePairs(4),
        RenoiseShared: RenoiseShared(2),
    }.get(type(algorithm.points), algorithm.points)
    return replace(algorithm, rollout=few(algorithm.rollout), points=points, **changes)


def small(**changes: Any) -> Run:
    numbers = {"iterations": 3, "images_per_update": 8, "group_size": 4, "microbatch": 8, "learning_rate": 1e-3}
    return Run(**{**numbers, **changes})


def trainer(
    tiny: str, how: AdvantageFlow | None = None, rank: int | None = None, reward: Any = bright, **changes: Any
) -> Trainer:
    policy = models.load(tiny, rank, "float32")
    return Trainer(how or algorithm(), policy, reward, prompts.of("mine", TEXTS), small(**changes))


def snapshot(policy: Policy, name: str = "policy") -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in policy.weights.tensors(name).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")


def points_of_a_group(settings: Any) -> Any:
    """What one group of images gives to train on: how many, and what has to stay together."""
    rollout = settings.algorithm.rollout.bound(lambda steps: TimeGrid(steps).times)
    return settings.algorithm.points(batches._blank(rollout, settings.run), ("",))


def plain(one: Trainer) -> Trainer:
    """It takes plain gradient steps of size 1 from now on: Adam would blow rounding errors up to its step size."""
    one.run = replace(one.run, learning_rate=1.0, warmup=0)
    one.optimiser = torch.optim.SGD(one.parameters, 1.0)
    return one
