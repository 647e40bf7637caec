"""The arithmetic of batches: what an iteration gives to train on, and the refusal of what does not come out even."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from ..learning.points import PointSet
from ..process.noise import Noise
from ..process.policy import Condition
from ..process.rollout import Rollout, Sampling
from ..system import distributed
from .run import Run

if TYPE_CHECKING:
    from ..algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class Counts:
    """Of training points."""

    per_update: int
    indivisible: int  # so many are compared with each other, and stay in one microbatch


def counted(algorithm: Algorithm, rollout: Sampling, run: Run) -> Counts:
    """What this algorithm makes of the samples of a run; `rollout` is its own, bound to the model.

    Raises:
        ValueError: images, points, updates, copies or processes do not come out even.
    """
    _refuse_torn(rollout, run)
    points = algorithm.points(_blank(rollout, run), ("",))
    found = Counts(_per_update(points, run), points.indivisible)
    if run.reward_buffer and (points.indivisible > 1 or rollout.leaves > 1):
        raise ValueError(
            "this algorithm compares images of one iteration with each other, so those of earlier ones cannot be "
            "among them: leave reward_buffer at 0"
        )
    _refuse_microbatch(found, run)
    for name, decay in algorithm.copies.items():
        if decay.every > 1 and decay.every % run.updates_per_iteration:
            raise ValueError(
                f"'{name}' follows every {decay.every} optimiser steps, which iterations of "
                f"{run.updates_per_iteration} do not meet"
            )
    if run.groups < distributed.count():
        raise ValueError(f"{run.groups} prompts an iteration are too few for {distributed.count()} processes")
    return found


def _refuse_torn(rollout: Sampling, run: Run) -> None:
    for name in ("group_size", "rollout_batch"):
        if getattr(run, name) % rollout.leaves:
            raise ValueError(
                f"{rollout.leaves} images come of one root, which a {name} of {getattr(run, name)} would tear apart"
            )


def _blank(rollout: Sampling, run: Run) -> Rollout:
    """One group of images without numbers, to count what it gives to train on."""
    size = run.group_size
    group, condition = torch.zeros(size, dtype=torch.long), Condition({"": torch.empty(1)})
    noise = Noise((0,), tuple(("", number) for number in range(size)))
    drawn = rollout.at(run.seed, 0)(lambda x, t, c: x, condition[group], noise)
    return Rollout.of([drawn], condition, group, rollout.levels)


def _per_update(points: PointSet, run: Run) -> int:
    """From the points of one group."""
    count = len(points) * run.groups
    units = len(points.units()) * run.groups
    if units % run.updates_per_iteration:
        raise ValueError(
            f"{units} images or groups to train on cannot be split evenly over {run.updates_per_iteration} updates"
        )
    return count // run.updates_per_iteration


def _refuse_microbatch(points: Counts, run: Run) -> None:
    micro = min(run.microbatch, points.per_update)
    if points.per_update % micro and run.memory is None:  # otherwise it is found later, or the last one is smaller
        raise ValueError(
            f"{run.images_per_update} images per update give {points.per_update} training points, which microbatches "
            f"of {run.microbatch} do not divide{_instead(points, micro)}"
        )
    if micro % points.indivisible:
        raise ValueError(
            f"{points.indivisible} training points are compared with each other, which microbatches of "
            f"{run.microbatch} would tear apart"
        )


def _instead(points: Counts, most: int) -> str:
    """The largest microbatch of at most so many points that would do; nothing is said where none would."""
    whole = [size for size in range(points.indivisible, most, points.indivisible) if points.per_update % size == 0]
    return f": {whole[-1]} would" if whole else ""
