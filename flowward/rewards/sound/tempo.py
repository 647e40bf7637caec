"""The tempo of a sound, by librosa."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ...process.sound import resampled
from ...system.errors import positive
from ..reward import Metadata, RewardError
from .waveforms import OnSound

RATE = 22_050  # Hz, librosa's own
HOP = 256  # samples from one value of the onset strength to the next
CENTRE, OCTAVES = 120.0, 1.0  # beats per minute, around which the estimate is likely, and how widely


@dataclass
class Tempo(OnSound):
    """Minus the distance of the tempo from the wanted one, in octaves: 0 is right, -1 is twice or half as fast.

    The wanted tempo is `bpm` in the metadata of a prompt, or the option. librosa estimates it from the onset strength
    (McFee et al., 2015): pip install 'flowward[sound]'. For sounds without a beat it is a guess.
    """

    bpm: float = 0.0
    """want this tempo, in beats per minute (0: the `bpm` in the metadata of each prompt)"""
    octaves: bool = True
    """count twice or half the tempo as wrong (false: as right)"""

    def __post_init__(self) -> None:
        if self.bpm:
            positive(self, "bpm")
        if not find_spec("librosa"):
            raise ValueError("the reward tempo needs librosa: pip install 'flowward[sound]'")

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError if the samples have no rate, or a prompt has no tempo."""
        super().refuse(prompts, metadata)
        for prompt, about in zip(prompts, metadata or [{}] * len(prompts), strict=True):
            if self._wanted(about) is None:
                raise ValueError(f"'{prompt}' has no tempo: give `bpm` in its metadata, or tempo.bpm to the reward")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Metadata = None) -> Tensor:
        rate, scores = self.rate(images, prompts, metadata), []
        for each, prompt, about in zip(images, prompts, metadata or (), strict=True):
            if (wanted := self._wanted(about)) is None:
                raise RewardError(f"'{prompt}' has no tempo: give `bpm` in its metadata, or tempo.bpm to the reward")
            off = math.log2(found / wanted) if (found := beats(each, rate)) else -1.0
            scores.append(-abs(off if self.octaves else (off + 0.5) % 1 - 0.5))
        return torch.tensor(scores)

    def _wanted(self, about: Any) -> float | None:
        known = about.get("bpm")
        given = isinstance(known, int | float) and not isinstance(known, bool) and 0 < known < math.inf
        return self.bpm or (float(known) if given else None)


def beats(waveform: Tensor, rate: int) -> float:
    """Beats per minute of a waveform [C, T]; 0 if it has no onsets."""
    import librosa

    one = resampled(waveform.float().mean(0), rate, RATE).numpy()
    strength = librosa.onset.onset_strength(y=one, sr=RATE, hop_length=HOP)
    if not strength.any():
        return 0.0
    found = librosa.feature.tempo(
        onset_envelope=strength, sr=RATE, hop_length=HOP, start_bpm=CENTRE, std_bpm=OCTAVES, aggregate=None
    )
    return float(sorted(found)[len(found) // 2])
