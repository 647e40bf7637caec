"""Drawing images of an iteration by their numbers, and the options that say where that is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from typing import Literal, get_args

import torch
from torch import Tensor

from ..process.noise import Noise
from ..process.policy import Condition, Policy
from ..process.rollout import Drawn, Sampling
from ..system.errors import between, one_of
from .run import Run

Where = Literal["here", "ray"]
MOST_ACTORS = 4096
MOST_STALE = 64  # iterations; each is one more copy of the weights


@dataclass(frozen=True)
class Drawing:
    """Where images are drawn and scored. Equal `stale` gives equal results, wherever and by however many."""

    rollouts: Where = "here"
    """draw images in the processes that train (`here`), or in actors of their own (`ray`; pip install flowward[ray])"""
    drawers: int = 1
    """Ray actors that draw, each with the whole model (on a cluster with GPUs: one GPU each)"""
    stale: int = 0
    """draw images with the weights of N iterations before, while the last ones are trained on (0: train on policy)"""
    reward_actors: int = 0
    """Ray actors that score images while others are drawn (0: the training process scores them)"""

    def __post_init__(self) -> None:
        one_of("place of rollouts", self.rollouts, get_args(Where))
        between(self, 1, MOST_ACTORS, "drawers")
        between(self, 0, MOST_STALE, "stale")
        between(self, 0, MOST_ACTORS, "reward_actors")
        others = [name for name, usual in USUAL.items() if getattr(self, name) != usual]
        if self.rollouts == "here" and others:
            flags = " and ".join(f"--{name.replace('_', '-')} {USUAL[name]}" for name in others)
            raise ValueError(f"{' and '.join(others)} are about Ray actors: add --rollouts ray, or set {flags}")

    def notes(self) -> list[str]:
        """Where images are drawn, if not here."""
        if self.rollouts == "here":
            return []
        who = "a Ray actor draws" if self.drawers == 1 else f"{self.drawers} Ray actors draw"
        before = f"weights of {self.stale} iteration{'s' * (self.stale > 1)} before"
        scored = f", and {self.reward_actors} score{'s' * (self.reward_actors == 1)}" if self.reward_actors else ""
        return [f"{who} the images with {before if self.stale else 'the current weights'}{scored}"]

    def idle(self, run: Run, processes: int) -> list[str]:
        """A warning about drawers that get no images; usually none."""
        blocks = processes * ceil(run.images / processes / run.rollout_batch)
        if self.drawers <= blocks:
            return []
        parts = f"{blocks} block{'s' * (blocks > 1)} of up to {run.rollout_batch} images"
        return [
            f"an iteration is drawn in {parts}, so only {blocks} of {self.drawers} drawers work at a time: use a "
            "smaller --rollout-batch or fewer --drawers"
        ]


USUAL = {"drawers": 1, "stale": 0, "reward_actors": 0}


def drawn_by(
    policy: Policy, rollout: Sampling, run: Run, iteration: int, weights: str
) -> Callable[[Condition, Tensor], tuple[Drawn, Tensor]]:
    """(condition of n rows, numbers of images [n]) -> their samples, and the images on the CPU.

    The same numbers in the same batch give the same bits, in any process with the same weights.

    Args:
        rollout: bound to the model.
        weights: the name under which `policy` has the weights to draw with.
    """
    draw, velocity = rollout.at(run.seed, iteration), policy.under(weights, rollout.guidance)
    decoded_at_once = block_of(rollout, run)

    def drawn(condition: Condition, numbers: Tensor) -> tuple[Drawn, Tensor]:
        size = run.group_size
        keys = tuple(("noise", run.seed, iteration, n // size, n % size) for n in numbers.tolist())
        found = draw(velocity, condition, Noise(policy.latent_shape, keys, policy.device))
        return found, torch.cat([policy.decode(part).cpu() for part in found.x0.split(decoded_at_once)])

    return drawn


def block_of(rollout: Sampling, run: Run) -> int:
    """Samples per forward pass without gradient. With trees, this is less than the rollout batch."""
    return run.rollout_batch // rollout.leaves * rollout.breadth
