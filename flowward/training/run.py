"""Settings of the training loop: for any kind of sample (Training) and for images (Run)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, get_args

from ..learning.mixing import MIXES, MixName
from ..learning.optimisers import OPTIMISERS, OptimiserName
from ..learning.snapshots import WarmDecay
from ..system.errors import at_least_one, between, not_negative, one_of, positive

Schedule = Literal["constant", "cosine"]
TrackerName = Literal["tensorboard", "wandb", "trackio", "swanlab", "mlflow"]
MOST_RATE = 1e30  # above, AdamW leaves the range of its numbers in one step
MOST_BATCH = 1_000_000_000  # images or training points
MOST_BUFFER = 1_000_000  # remembered rewards per prompt
MOST_KEPT = 100_000  # checkpoints
MOST_IMAGES = 10_000_000  # per iteration: more would not fit into any memory


@dataclass(frozen=True)
class Training:
    """Settings of any training loop, for any kind of sample. Gradient accumulation is derived from them."""

    noun: ClassVar[str] = "images"  # what samples are

    output: Path | None = None
    """run folder (none: nothing is kept in Python, and `flowward train` makes one in runs/)"""
    track: tuple[TrackerName, ...] = ()
    """send the run to these experiment trackers too (docs/tracking.md)"""
    iterations: int = 50
    """rollouts, each followed by its optimiser steps"""
    group_size: int = 12
    """samples per prompt, which are compared with each other"""
    mix: MixName = "rewards"
    """combine several rewards: sums (`rewards`, `advantages`, `gdpo`), `pareto`, `chebyshev`, or apart (`descent`)"""
    updates_per_iteration: int = 1
    """optimiser steps per rollout"""
    microbatch: int = 144
    """training points per forward and backward pass"""
    memory: float | Literal["auto"] | None = None
    """choose the largest batches within this many GB of CUDA memory (auto: 90 % of the card; none: leave them)"""
    optimiser: OptimiserName = "adamw"
    """`adamw8bit` stores Adam's moments in 8 bits, a quarter of their memory (bitsandbytes)"""
    learning_rate: float = 5e-4
    """peak learning rate"""
    warmup: int = 10
    """linear warm-up, in optimiser steps"""
    schedule: Schedule = "constant"
    """learning rate after the warm-up: `constant`, or `cosine` down to 0 at the last step"""
    weight_decay: float = 0.0
    """AdamW's weight decay"""
    betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas"""
    gradient_clip: float = 1.0
    """largest global gradient norm"""
    skip_nonfinite: int = 0
    """skip up to N optimiser steps in a row whose gradient is NaN or infinite (0: stop at the first)"""
    rollback: int = 0
    """after NaN or infinity, go back to the last checkpoint and halve the learning rate, up to N times"""
    stop_when_hacked: bool = False
    """end the run at the first evaluation in which a guard falls while the headline score rises"""
    curriculum: int = 0
    """skip a prompt for N turns if all its samples got equal rewards twice (0: off)"""
    seed: int = 0
    """random seed; equal seeds give equal runs"""
    ema_decay: float = 0.9
    """decay of the EMA copy of the policy, which can be evaluated; shorter at first"""
    evaluate_every: int = 25
    """iterations between evaluations (0: only before and after)"""
    checkpoint_every: int = 25
    """iterations between checkpoints"""
    checkpoint_async: bool = False
    """write checkpoints while training goes on"""
    keep: int = 2
    """keep the last N checkpoints, and the one with the best headline score"""

    def __post_init__(self) -> None:
        if self.output is not None:  # from Python it may be a string
            object.__setattr__(self, "output", Path(self.output))
        object.__setattr__(self, "track", tuple(dict.fromkeys(self.track)))
        if strange := [name for name in self.track if name not in get_args(TrackerName)]:
            raise ValueError(f"unknown tracker '{strange[0]}'; known: {', '.join(get_args(TrackerName))}")
        at_least_one(self, "updates_per_iteration", "checkpoint_every")
        between(self, 1, MOST_BATCH, "microbatch")
        between(self, 1, MOST_KEPT, "keep")
        not_negative(self, "iterations", "warmup", "seed", "curriculum", "weight_decay", "skip_nonfinite", "rollback")
        not_negative(self, "evaluate_every")
        one_of("mix of rewards", self.mix, MIXES)
        one_of("optimiser", self.optimiser, OPTIMISERS)
        one_of("schedule of the learning rate", self.schedule, get_args(Schedule))
        positive(self, "learning_rate", "gradient_clip", *(["memory"] if isinstance(self.memory, float | int) else []))
        if self.learning_rate > MOST_RATE:
            raise ValueError(f"learning_rate must be at most {MOST_RATE:g}, not {self.learning_rate:g}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas, the decays of AdamW's averages, must lie in [0, 1), not {self.betas}")
        WarmDecay(self.ema_decay)  # raises ValueError outside [0, 1)

    @property
    def samples(self) -> int:
        """Samples per iteration."""
        raise NotImplementedError

    @property
    def groups(self) -> int:
        """Prompts per iteration."""
        return self.samples // self.group_size

    def evaluations(self, after: int) -> int:
        """Evaluations that are due after an iteration."""
        every, end = self.evaluate_every, self.iterations
        due = end // every - after // every if every else 0
        return due + (end > after and (not every or end % every != 0))

    def rate(self, number: int) -> float:
        """The learning rate of optimiser step `number`, counted from 0."""
        warm = min(1.0, (number + 1) / max(1, self.warmup))
        if self.schedule == "constant":
            return self.learning_rate * warm
        done = number / (self.iterations * self.updates_per_iteration)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Run(Training):
    """Training-loop settings. Gradient accumulation is derived; sizes that do not divide evenly are rejected."""

    images_per_update: int = 288
    """images per optimiser step"""
    rollout_batch: int = 288
    """images sampled at once"""
    reward_buffer: int = 0
    """compare images with the last N rewards of their prompt too (DDPO: 32; 0: off)"""
    allow_distilled: bool = False
    """train a step-distilled model even with a loss that blurs its samples (docs/few_step.md)"""

    def __post_init__(self) -> None:
        if self.group_size < 2 and not (self.group_size == 1 and self.reward_buffer):
            raise ValueError(
                f"group_size is {self.group_size}, but advantages compare images of one prompt: use at least 2"
            )
        super().__post_init__()
        at_least_one(self, "images_per_update")
        between(self, 1, MOST_BATCH, "rollout_batch")
        between(self, 0, MOST_BUFFER, "reward_buffer")
        if self.images > MOST_IMAGES:
            raise ValueError(f"an iteration can have at most {MOST_IMAGES:,} images, not {self.images:,}")
        if self.images % self.group_size:
            near = _near_divisors(self.images, self.group_size)
            what = f"try --group-size {_either(near)}" if near else "use more --images-per-update"
            raise ValueError(
                f"{self.images} images per iteration cannot be split into groups of {self.group_size}; {what}"
            )

    @property
    def images(self) -> int:
        """Images per iteration."""
        return self.images_per_update * self.updates_per_iteration

    @property
    def samples(self) -> int:
        """Samples per iteration; a sample is an image."""
        return self.images


def _near_divisors(total: int, wanted: int, most: int = 3) -> list[int]:
    """The divisors of `total` closest to `wanted`, from 2 on, rising."""
    found = [size for size in range(2, total + 1) if total % size == 0]
    return sorted(sorted(found, key=lambda size: abs(size - wanted))[:most])


def _either(numbers: list[int]) -> str:
    *first, last = map(str, numbers)
    return f"{', '.join(first)} or {last}" if first else last
