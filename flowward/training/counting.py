"""What a run will compute, counted from its settings, and the time of one pass."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..process.noise import Noise
from ..process.policy import Condition
from ..process.rollout import Sampling
from .run import Run

if TYPE_CHECKING:
    from .assembly import Assembly


@dataclass(frozen=True)
class Counts:
    """Network evaluations of an iteration. A forward pass for one sample counts once."""

    sampling: int  # forward passes of the rollout
    training: int  # forward and backward passes
    frozen: int  # forward passes of the old policy and the reference: at most
    evaluation: int  # forward passes of one evaluation

    @property
    def iteration(self) -> int:
        """All of an iteration, without evaluations."""
        return self.sampling + self.training + self.frozen


def counts(made: Assembly) -> Counts:
    """The network evaluations of an iteration and of an evaluation."""
    trainer, how, policy = made.trainer, made.evaluator, made.trainer.policy
    run, rollout, algorithm = made.settings.run, trainer.rollout, trainer.algorithm
    points = trainer.points_per_update * run.updates_per_iteration * trainer.gradients
    sampling = (
        0 if made.settings.preferences else rows(rollout, run) * run.groups * policy.evaluations(rollout.guidance)
    )
    frozen = sum(policy.evaluations(guidance) for guidance in algorithm.anchors.values())
    sampler = how.evaluation.sampler.bound(policy.times)
    shown = len(how.evaluation.chosen(how.prompts)) * len(sampler.levels) * policy.evaluations(sampler.guidance)
    return Counts(sampling, points * policy.evaluations(algorithm.guidance), points * frozen, shown)


def rows(rollout: Sampling, run: Run) -> int:
    """Samples that the rollout of one group asks the network about, counted with an empty latent."""
    size, found = run.group_size, list[int]()

    def count(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        found.append(len(x))
        return x

    noise = Noise((0,), tuple(("", number) for number in range(size)))
    condition = Condition({"": torch.empty(1)})[torch.zeros(size, dtype=torch.long)]
    rollout.at(run.seed, 0)(count, condition, noise)
    return sum(found)


def said(seconds: float) -> str:
    """A duration, such as '12 min'."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def timed(work: Callable[[], object], repeats: int = 1) -> float:
    """Seconds of the fastest of some calls, after a first one that loads and compiles what is needed."""
    work()
    return min(_seconds(work) for _ in range(repeats))


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started
