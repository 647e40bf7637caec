"""Settings of the built-in models' training. Reading them needs no torch; pretrain.py and distil.py train."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..system.errors import between, not_negative, positive

MOST_STEPS = 10**9
MOST_BATCH = 100_000
SHARD = 64  # training steps for which pictures are rendered at once


@dataclass(frozen=True)
class Pretrain:
    """Settings for pretraining; the defaults made the shipped base model."""

    world: ClassVar[str] = "scenes"
    output: Path
    """folder for the checkpoints, the log and the finished model"""
    seed: int = 0
    """random seed"""
    autoencoder_steps: int = 2400
    """training steps of the autoencoder"""
    autoencoder_batch: int = 64
    """batch size of the autoencoder"""
    autoencoder_learning_rate: float = 2e-3
    """learning rate of the autoencoder (AdamW)"""
    kl: float = 3e-4
    """weight of the autoencoder's KL per latent number, relative to squared error per pixel"""
    steps: int = 7000
    """training steps in the flow's learning-rate schedule"""
    stop: int = 5000
    """stop the flow at this step, with half of its prompts left to learn"""
    batch: int = 128
    """batch size of the flow"""
    learning_rate: float = 1e-3
    """learning rate of AdamW, for all weights but the matrices of the transformer blocks"""
    matrix_learning_rate: float = 3e-3
    """learning rate of Muon, for those matrices (half of AdamW's steps; docs/scenes.md)"""
    ema: float = 0.999
    """EMA decay of the flow's weights"""
    caption_errors: float = 0.15
    """share of pictures that differ from their caption in one respect"""
    caption_dropout: float = 0.1
    """share of empty captions, needed for classifier-free guidance"""
    views: int = 4
    """use each rendered and encoded picture N times, each time with fresh noise"""
    start: Path | None = None
    """begin with the networks in this folder: its `vae`, and its `transformer` with `text_encoder` if they are there"""
    begin: int = 0
    """flow step that the transformer in `start` has reached"""
    save_every: int = 500
    """save a checkpoint every N steps"""
    measure_every: int = 0
    """log the strict accuracy of samples every N flow steps (0: never)"""
    precision: Literal["auto", "bf16", "float32"] = "auto"  # precision.Wish, which needs torch
    """precision of the networks (auto: bf16 if the processor has it); a resumed run keeps its own"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""

    def __post_init__(self) -> None:
        not_negative(self, "seed", "kl", "measure_every", "begin")
        positive(self, "autoencoder_learning_rate", "learning_rate", "matrix_learning_rate")
        between(self, 1, MOST_STEPS, "autoencoder_steps", "steps", "stop", "save_every")
        between(self, 1, MOST_BATCH, "autoencoder_batch", "batch")
        between(self, 0, 1, "caption_errors", "caption_dropout")
        if self.stop > self.steps:
            raise ValueError(f"stop must be at most steps, {self.steps}, where the learning rate is 0, not {self.stop}")
        if self.begin >= self.stop:
            raise ValueError(f"begin must be below stop, {self.stop}, not {self.begin}")
        if self.begin and not self.start:
            raise ValueError("begin says how far the networks of --start are: give both")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema, a decay, must lie in [0, 1), not {self.ema}")
        if not 1 <= self.views <= SHARD:
            raise ValueError(f"views must be between 1 and {SHARD}, not {self.views}")


@dataclass(frozen=True)
class Pretrain64(Pretrain):
    """Settings for pretraining on scenes-64; it takes three to six hours of one core."""

    world: ClassVar[str] = "scenes-64"
    autoencoder_batch: int = 32
    """batch size of the autoencoder"""
    batch: int = 64
    """batch size of the flow"""
    kl: float = 1e-4
    """weight of the autoencoder's KL per latent number, relative to squared error per pixel"""
    steps: int = 24000
    """training steps in the flow's learning-rate schedule"""
    stop: int = 20000
    """stop the flow at this step, with prompts left to learn"""
    measure_every: int = 1000
    """log the strict accuracy of samples every N flow steps (0: never)"""


@dataclass(frozen=True)
class Distil:
    """Settings for distilling the few-step model; the defaults made the shipped one."""

    output: Path
    """folder for the checkpoint, the log and the finished model"""
    teacher: str = "scenes"
    """distil this model: `scenes`, or a folder made by `flowward pretrain scenes`"""
    seed: int = 0
    """random seed"""
    steps: int = 2000
    """training steps in the learning-rate schedule"""
    stop: int = 700
    """stop at this step, and settle"""
    settle: int = 150
    """then train from the average of the weights, while the learning rate falls to 0 in so many steps"""
    settle_stop: int = 100
    """stop settling at this step"""
    batch: int = 64
    """jumps per training step"""
    points: int = 12
    """steps of the teacher from noise to data; jumps start and end at its states"""
    views: int = 24
    """use each of the teacher's trajectories for N jumps on average"""
    learning_rate: float = 5e-4
    """learning rate of AdamW, for all weights but the matrices of the transformer blocks"""
    matrix_learning_rate: float = 1e-3
    """learning rate of Muon, for those matrices"""
    ema: float = 0.998
    """EMA decay of the weights"""
    caption_dropout: float = 0.1
    """share of empty captions, needed for classifier-free guidance"""
    save_every: int = 50
    """save a checkpoint every N steps"""
    precision: Literal["auto", "bf16", "float32"] = "auto"
    """precision of the networks (auto: bf16 if the processor has it); a resumed run keeps its own"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""

    def __post_init__(self) -> None:
        not_negative(self, "seed")
        positive(self, "learning_rate", "matrix_learning_rate")
        between(self, 1, MOST_STEPS, "steps", "stop", "settle", "settle_stop", "save_every")
        between(self, 1, MOST_BATCH, "batch")
        if self.stop > self.steps:
            raise ValueError(f"stop must be at most steps, {self.steps}, where the learning rate is 0, not {self.stop}")
        if self.settle_stop > self.settle:
            raise ValueError(f"settle_stop must be at most settle, {self.settle}, not {self.settle_stop}")
        between(self, 4, 1000, "points")
        between(self, 0, 1, "caption_dropout")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema, a decay, must lie in [0, 1), not {self.ema}")
        if not 1 <= self.views <= SHARD:
            raise ValueError(f"views must be between 1 and {SHARD}, not {self.views}")
