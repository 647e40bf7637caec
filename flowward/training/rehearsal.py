"""`flowward train --dry-run`: what a run will compute, from its settings and one measured pass of each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..process.noise import Noise
from ..process.policy import Policy
from ..rewards import Reward, score, terms
from . import fit
from .assembly import Assembly
from .bench import peak_memory
from .counting import Counts, counts, said, timed
from .trainer import Trainer

PROBES = 2  # images that each reward scores


@dataclass(frozen=True)
class Seconds:
    """Measured times."""

    forward: float  # of a network evaluation, per sample
    decode: float  # of the autoencoder, per image
    training: float  # forward, backward and frozen copies, per training point
    rewards: dict[str, float]  # of each reward, per image
    measures: dict[str, float]  # of each reward of the evaluation, per image


@dataclass(frozen=True)
class Rehearsal:
    """What a run will compute."""

    made: Assembly
    counts: Counts
    seconds: Seconds
    bytes: float | None  # peak memory: on CUDA of the tensors, else of the process; None if it is unknown

    @property
    def evaluations(self) -> int:
        """Evaluations of the whole run."""
        run = self.made.settings.run
        return 1 + int(run.evaluations(0))

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of an iteration, by its parts."""
        run, one, counts = self.made.settings.run, self.seconds, self.counts
        points = self.made.trainer.points_per_update * run.updates_per_iteration
        return {
            "sampling": counts.sampling * one.forward + (run.images * one.decode if counts.sampling else 0),
            "rewards": run.images * sum(one.rewards.values()),
            "training": points * one.training,
        }

    @property
    def evaluation(self) -> float:
        """Seconds of one evaluation."""
        images = len(self.made.evaluator.evaluation.chosen(self.made.evaluator.prompts))
        return self.counts.evaluation * self.seconds.forward + images * (
            self.seconds.decode + sum(self.seconds.measures.values())
        )

    def lines(self) -> Iterator[str]:
        """The report, line by line."""
        run, trainer, how = self.made.settings.run, self.made.trainer, self.made.evaluator
        points, total = trainer.points_per_update * run.updates_per_iteration, sum(self.parts.values())
        measured = len(how.evaluation.chosen(how.prompts))
        yield f"model                {trainer.policy.name}, {trainer.policy.precision}, {trainer.policy.device}"
        yield f"prompts              {len(trainer.prompts):,} of {trainer.prompts.name}"
        for what, found in (("reward", self.seconds.rewards), ("evaluation reward", self.seconds.measures)):
            for name, each in found.items():
                yield f"{what:<20} {name}: works, {1e3 * each:.1f} ms per image"
        yield f"images               {run.images:,} per iteration ({run.groups:,} prompts x {run.group_size})"
        yield f"updates              {run.updates_per_iteration:,} per iteration"
        yield f"training points      {points:,} per iteration ({trainer.points_per_update:,} per update)"
        yield (
            f"network evaluations  {self.counts.iteration:,} per iteration: {self.counts.sampling:,} to sample, "
            f"{self.counts.training:,} to train, at most {self.counts.frozen:,} of frozen copies"
        )
        yield (
            f"evaluations          {self.evaluations:,} in all, each {measured:,} images and "
            f"{self.counts.evaluation:,} network evaluations"
        )
        whole = run.iterations * self.counts.iteration + self.evaluations * self.counts.evaluation
        yield f"in all               {run.iterations:,} iterations, {run.iterations * run.images:,} images, " + (
            f"{whole:,} network evaluations"
        )
        if self.bytes is not None:
            where = "of the GPU" if trainer.policy.device.type == "cuda" else "of the process"
            yield f"memory               about {self.bytes / 1e9:.1f} GB {where}"
        parts = ", ".join(f"{name} {said(each)}" for name, each in self.parts.items())
        yield f"time                 about {said(total)} per iteration ({parts})"
        yield f"                     about {said(self.evaluation)} per evaluation"
        every = run.iterations * total + self.evaluations * self.evaluation
        yield f"                     about {said(every)} in all (estimated from one pass of each kind)"


def rehearsed(made: Assembly) -> Rehearsal:
    """Probe the rewards and measure one pass of each kind. No weight changes, and nothing is written.

    Raises:
        RewardError: a reward fails.
        OutOfMemory: the batches do not fit.
    """
    trainer = made.trainer
    images, facts = _probes(trainer.policy), trainer.policy.medium.facts
    own = {name: reward for name, _, reward in terms(trainer.reward)}
    rewards = {} if made.settings.preferences else _scored(own, images, trainer.prompts, facts)
    measures = _scored(dict(made.evaluator.rewards), images, made.evaluator.prompts, facts)
    memory: list[float] = []
    seconds = Seconds(*_passes(trainer, memory), rewards, measures)
    peak = max(memory) if memory else peak_memory()
    return Rehearsal(made, counts(made), seconds, None if peak is None else peak + fit.beside(trainer))


@torch.no_grad()
def _probes(policy: Policy) -> Tensor:
    """Two decoded samples of pure noise."""
    noise = Noise(policy.latent_shape, tuple(("probe", number) for number in range(PROBES)), policy.device)
    return policy.decode(noise.start()).cpu()


def _scored(found: dict[str, Reward], images: Tensor, prompts: Any, facts: Any) -> dict[str, float]:
    """Seconds per image of each reward, for images of the first prompt."""
    asked = [0] * len(images)
    texts, about = [prompts.texts[0]] * len(images), prompts.about(asked, facts)
    return {
        name: timed(partial(score, name, reward, images, texts, about)) / len(images) for name, reward in found.items()
    }


def _passes(trainer: Trainer, memory: list[float]) -> tuple[float, float, float]:
    """Seconds per network evaluation, per decoded image and per training point; adds peak bytes on CUDA."""
    policy, run, rollout = trainer.policy, trainer.run, trainer.rollout
    sampled = min(run.rollout_batch, run.images)
    trained = min(run.microbatch, trainer.points_per_update) // trainer.indivisible * trainer.indivisible
    work: list[Callable[[], None]] = [
        lambda: fit.sample(trainer, sampled),
        lambda: fit.learn(trainer, max(trained, trainer.indivisible)),
    ]
    if policy.device.type == "cuda":
        peak = fit.cuda_peak(policy.device)
        memory += [peak(each) for each in work]
    whole = timed(work[0])
    at_once = sampled // rollout.leaves * rollout.breadth
    decode = timed(lambda: _decoded(policy, at_once))
    forward = max(0.0, whole - decode) / (at_once * policy.evaluations(rollout.guidance))
    return forward, decode / at_once, timed(work[1]) / max(trained, trainer.indivisible)


@torch.no_grad()
def _decoded(policy: Policy, many: int) -> None:
    policy.decode(torch.zeros(many, *policy.latent_shape, device=policy.device))
