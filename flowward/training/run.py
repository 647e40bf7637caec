"""How much of what a run does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from ..learning.mixing import MIXES, MixName
from ..learning.optimisers import OPTIMISERS, OptimiserName
from ..learning.snapshots import WarmDecay
from ..system.errors import not_negative, one_of, positive

Schedule = Literal["constant", "cosine"]


@dataclass(frozen=True)
class Run:
    """How much of what. Batches and accumulation follow from it; what does not divide is refused."""

    output: Path | None = None
    """run folder (None: in Python nothing is kept, and `flowward train` makes one in runs/)"""
    iterations: int = 50
    images_per_update: int = 288
    """images behind one optimiser step"""
    group_size: int = 12
    """images per prompt"""
    mix: MixName = "rewards"
    """of several rewards: add them up and compare images by the sum, compare by each and add up the `advantages`,
    divide that by its spread (`gdpo`), or compare by which images dominate which (`pareto`)"""
    reward_buffer: int = 0
    """images of a prompt are also compared with its last ones of earlier iterations, up to so many in all (DDPO: 32)"""
    updates_per_iteration: int = 1
    """optimiser steps per rollout"""
    microbatch: int = 144
    """training points per forward and backward pass"""
    rollout_batch: int = 288
    """images sampled at once"""
    memory: float | Literal["auto"] | None = None
    """GB of CUDA memory (auto: nine tenths of what there is): rollout_batch and microbatch are then the largest that
    stay within it; None, and auto without a CUDA device, leave them as they are"""
    optimiser: OptimiserName = "adamw"
    """`adamw8bit` keeps Adam's moments in 8 bits, a quarter of their memory (bitsandbytes)"""
    learning_rate: float = 5e-4
    warmup: int = 10
    """optimiser steps over which the learning rate rises: Adam's first steps are long, and blind"""
    schedule: Schedule = "constant"
    """of the learning rate after the warm-up: `cosine` falls to 0 at the last step, for long runs"""
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    gradient_clip: float = 1.0
    """largest global gradient norm"""
    curriculum: int = 0
    """turns for which a prompt rests whose images all earned the same in its last two (0: none rests)"""
    seed: int = 0
    ema_decay: float = 0.9
    """of the running average of the policy that can be evaluated; shorter at first"""
    evaluate_every: int = 25
    """iterations between evaluations (0: only before and after)"""
    checkpoint_every: int = 25

    def __post_init__(self) -> None:
        if self.output is not None:  # from Python it may be a text
            object.__setattr__(self, "output", Path(self.output))
        if self.group_size < 2 and not (self.group_size == 1 and self.reward_buffer):
            raise ValueError(
                f"group_size is {self.group_size}, but advantages compare images of one prompt: use at least 2"
            )
        for name in ("images_per_update", "updates_per_iteration", "microbatch", "rollout_batch", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        not_negative(self, "iterations", "warmup", "seed", "reward_buffer", "curriculum")
        one_of("mix of rewards", self.mix, MIXES)
        one_of("optimiser", self.optimiser, OPTIMISERS)
        one_of("schedule of the learning rate", self.schedule, get_args(Schedule))
        positive(self, "learning_rate", "gradient_clip", *(["memory"] if isinstance(self.memory, float | int) else []))
        WarmDecay(self.ema_decay)  # refuses what is not a share
        if self.images % self.group_size:
            raise ValueError(
                f"{self.images_per_update} images per update x {self.updates_per_iteration} updates = {self.images} "
                f"images an iteration, which groups of {self.group_size} do not divide"
            )

    def rate(self, number: int) -> float:
        """The learning rate of optimiser step `number`, counted from 0."""
        warm = min(1.0, (number + 1) / max(1, self.warmup))
        if self.schedule == "constant":
            return self.learning_rate * warm
        done = number / (self.iterations * self.updates_per_iteration)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))

    @property
    def images(self) -> int:
        """Images per iteration."""
        return self.images_per_update * self.updates_per_iteration

    @property
    def groups(self) -> int:
        """Prompts per iteration."""
        return self.images // self.group_size
