"""Batch-size arithmetic: training points per update, and errors for sizes that do not divide evenly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ..learning.credit import constant
from ..learning.mixing import APART
from ..learning.points import PointSet
from ..process.noise import Noise
from ..process.policy import Condition
from ..process.rollout import Rollout, Sampling
from .run import Run

if TYPE_CHECKING:
    from ..algorithms.algorithm import Algorithm


@dataclass(frozen=True)
class Counts:
    """Numbers of training points."""

    per_update: int
    indivisible: int  # points that one call of the loss needs, so they stay in one microbatch
    compares: bool  # whether the loss compares images of a prompt


def counted(algorithm: Algorithm, rollout: Sampling, run: Run) -> Counts:
    """The training points that this algorithm makes from a run's samples; `rollout` is bound to the model.

    Raises:
        ValueError: images, points, updates or copies do not divide evenly.
    """
    _refuse_torn(rollout, run)
    if constant(algorithm.credit) and (run.mix != "rewards" or run.reward_buffer or run.curriculum):
        raise ValueError(
            "this algorithm compares no rewards (it follows a teacher, or the gradient of their weighted sum): leave "
            "out --mix, --palette, --reward-buffer and --curriculum"
        )
    _refuse_own_rows(algorithm, run)
    points = algorithm.points(_blank(rollout, run), ("",))
    _refuse_alone(points, rollout, run)
    compares = getattr(points, "compares", points.indivisible > 1)  # optional for a user's own points
    found = Counts(_per_update(points, run), points.indivisible, compares)
    if run.reward_buffer and (found.compares or rollout.leaves > 1):
        raise ValueError(
            "this algorithm compares images of one iteration only, so it cannot use the rewards of earlier iterations: "
            "set --reward-buffer 0"
        )
    _refuse_microbatch(found, run)
    for name, decay in algorithm.copies.items():
        if decay.every > 1 and decay.every % run.updates_per_iteration:
            raise ValueError(
                f"the copy '{name}' is updated every {decay.every} optimiser steps, which is not a multiple of "
                f"--updates-per-iteration {run.updates_per_iteration}: change one of them"
            )
    return found


def idle(run: Run, unit: int, processes: int) -> list[str]:
    """A warning about processes that get no images; usually none. `unit` is the number of images that stay together."""
    parts = run.images // unit
    if parts >= processes:
        return []
    what = f"{parts} parts of {unit} images that belong together" if unit > 1 else f"{parts} images"
    left = processes - parts
    return [
        f"an iteration has {what}, so {left} of {processes} processes {'has' if left == 1 else 'have'} nothing to do: "
        "use fewer --processes or more --images-per-update"
    ]


def _refuse_own_rows(algorithm: Algorithm, run: Run) -> None:
    """Raise ValueError if rewards that stay apart would each be trained on rows of their own."""
    points = algorithm.points
    own = getattr(points, "counted", "all") == "signal" or getattr(points, "extremes", None) is not None
    if run.mix in APART and own:
        raise ValueError(
            f"--mix {run.mix} needs the same steps for every reward: set --algorithm.points.counted all and "
            "--algorithm.points.extremes none, or use another mix"
        )


def _refuse_alone(points: PointSet, rollout: Sampling, run: Run) -> None:
    """Raise ValueError if points of a group have no advantage although its images differ."""
    given = getattr(points, "advantage", None)  # random steps have one
    if given is not None and not (given != 0).any():
        raise ValueError(
            f"with --group-size {run.group_size} no step of a prompt is compared with another, so nothing is trained: "
            f"use --group-size {2 * rollout.leaves} or more, in steps of {rollout.leaves}"
        )


def _refuse_torn(rollout: Sampling, run: Run) -> None:
    for name in ("group_size", "rollout_batch"):
        if getattr(run, name) % rollout.leaves:
            raise ValueError(
                f"{rollout.leaves} images share one tree, so --{name.replace('_', '-')} must be a multiple of "
                f"{rollout.leaves}, not {getattr(run, name)}"
            )


def _blank(rollout: Sampling, run: Run) -> Rollout:
    """One group of empty images with different advantages and gaps, to count its training points."""
    size = run.group_size
    group, condition = torch.zeros(size, dtype=torch.long), Condition({"": torch.empty(1)})
    noise = Noise((0,), tuple(("", number) for number in range(size)))
    drawn = rollout.at(run.seed, 0)(lambda x, t, c: x, condition[group], noise)
    made = Rollout.of([drawn], condition, group, rollout.levels)
    return replace(made, advantage=torch.arange(1, size + 1, dtype=torch.float64) ** 2)


def _per_update(points: PointSet, run: Run) -> int:
    """Points per update, computed from the points of one group."""
    count = len(points) * run.groups
    units = len(points.units()) * (1 if points.in_order else run.groups)
    if units % run.updates_per_iteration:
        what = "random steps" if points.in_order else "images or groups"
        raise ValueError(
            f"{units} {what} per iteration cannot be split evenly over {run.updates_per_iteration} updates: "
            "change --updates-per-iteration"
        )
    return count // run.updates_per_iteration


def _refuse_microbatch(points: Counts, run: Run) -> None:
    micro = min(run.microbatch, points.per_update)
    if points.per_update % micro and run.memory is None:  # with --memory, a microbatch that fits is chosen later
        raise ValueError(
            f"{run.images_per_update} images per update give {points.per_update} training points, which cannot be "
            f"split into microbatches of {run.microbatch}{_instead(points, micro)}"
        )
    if micro % points.indivisible:
        what = "compared with each other" if points.compares else "averaged"
        raise ValueError(
            f"{points.indivisible} training points are {what}, so --microbatch must be a multiple of "
            f"{points.indivisible}, not {run.microbatch}"
        )


def _instead(points: Counts, most: int) -> str:
    """The largest smaller microbatch that divides evenly, as advice; empty if there is none."""
    whole = [size for size in range(points.indivisible, most, points.indivisible) if points.per_update % size == 0]
    return f"; try --microbatch {whole[-1]}" if whole else ""
