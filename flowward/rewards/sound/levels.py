"""How loud a sound is, how much of it is silent, and how much is clipped: rewards without weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...system.errors import one_of
from ..reward import Metadata, RewardError
from .waveforms import OnSound

SILENT = -70.0  # LUFS and dB below which nothing is told apart
BLOCK, STEP = 0.4, 0.1  # seconds of a block of BS.1770, and from one to the next
GATE = -10.0  # LU below the mean of the blocks, under which a block does not count
LOWEST = 8000  # Hz, of a rate at which the filters of BS.1770 make sense
SHELF, PASS = (1681.974450955533, 0.7071752369554196), (38.13547087602444, 0.5003270373238773)  # Hz and Q
GAIN = 3.999843853973347  # dB of the shelf


def decibels(waveforms: Tensor) -> Tensor:
    """Root mean square of waveforms [B, C, T] in dB, [B]; 0 is a constant 1, a full sine has -3.01. At least SILENT."""
    power = waveforms.detach().cpu().double().square().mean((1, 2))
    return (10 * power.clamp(min=1e-30).log10()).clamp(min=SILENT).float()


def loudness(waveform: Tensor, rate: int) -> float:
    """Integrated loudness of a waveform [C, T], one or two channels, in LUFS (ITU-R BS.1770-4). At least SILENT.

    Raises:
        RewardError: the rate is below LOWEST.
    """
    from scipy.signal import lfilter

    if rate < LOWEST:
        raise RewardError(f"LUFS needs a rate of at least {LOWEST:,} Hz, not {rate:,}: set loudness.unit=rms")
    heard = waveform.detach().cpu().double().numpy()
    for b, a in _weighting(rate):
        heard = lfilter(b, a, heard, axis=-1)
    power = np.square(heard).sum(0)  # both channels count fully
    size, step = min(len(power), round(BLOCK * rate)), round(STEP * rate)
    whole = np.concatenate([[0.0], np.cumsum(power)])
    blocks = np.array([(whole[k + size] - whole[k]) / size for k in range(0, len(power) - size + 1, step)])
    blocks = blocks[_lufs(blocks) > SILENT]
    if not len(blocks):
        return SILENT
    kept = blocks[_lufs(blocks) > _lufs(blocks.mean()) + GATE]
    return max(SILENT, float(_lufs(kept.mean())))


def _lufs(power: Any) -> Any:
    return -0.691 + 10 * np.log10(np.maximum(power, 1e-30))


@cache
def _weighting(rate: int) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], ...]:
    """The two filters of BS.1770 at a rate: a shelf for the head, and a high pass."""
    (shelf, q), (low, q_low) = SHELF, PASS
    k, high = math.tan(math.pi * shelf / rate), 10 ** (GAIN / 20)
    band, scale = high**0.4996667741545416, 1 + k / q + k * k
    b = np.array([high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k]) / scale
    a = np.array([scale, 2 * (k * k - 1), 1 - k / q + k * k]) / scale
    k = math.tan(math.pi * low / rate)
    scale = 1 + k / q_low + k * k
    return (b, a), (np.array([1.0, -2.0, 1.0]), np.array([scale, 2 * (k * k - 1), 1 - k / q_low + k * k]) / scale)


@dataclass
class Loudness(OnSound):
    """Minus the distance of the loudness from a target, in LU or dB: 0 is right, -6 is 6 dB too loud or too quiet.

    LUFS is the integrated loudness of ITU-R BS.1770-4: weighted for the ear, without pauses. Streaming has -14, film
    and broadcasting -23 to -27. ACE-Step scales every sound to the same peak, so only its shape can change this.
    """

    target: float = -16.0
    """want this loudness, in LUFS or dB"""
    unit: Literal["lufs", "rms"] = "lufs"
    """measure in LUFS, or as the root mean square in dB (rms)"""

    def __post_init__(self) -> None:
        one_of("unit of loudness", self.unit, ("lufs", "rms"))
        if not SILENT <= self.target <= 0:
            raise ValueError(f"target must be between {SILENT:g} and 0, not {self.target:g}")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        rate = self.rate(images, prompts, metadata)
        if self.unit == "rms":
            return -(decibels(images) - self.target).abs()
        return -(torch.tensor([loudness(each, rate) for each in images]) - self.target).abs()


@dataclass
class Sounding(OnSound):
    """The share of a sound that is not silent, from 0 to 1, in pieces of 20 ms."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    threshold: float = -50.0
    """count a piece as silent if its root mean square is below this, in dB"""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        rate = self.rate(images, prompts, metadata)
        size = min(images.shape[-1], max(1, round(0.02 * rate)))
        pieces = images.detach().cpu().double().unfold(-1, size, size)  # [B, C, N, size]
        power = pieces.square().mean((1, 3))
        return (power >= 10 ** (self.threshold / 10)).double().mean(1).float()


@dataclass
class Unclipped(OnSound):
    """The share of a sound that is not clipped, from 0 to 1: values below `level` in all channels."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    level: float = 0.999
    """count a value as clipped from here on, where 1 is full scale"""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        self.rate(images, prompts, metadata)
        return (images.detach().cpu().abs().amax(1) < self.level).float().mean(1)
