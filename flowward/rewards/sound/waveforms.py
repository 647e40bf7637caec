"""What rewards on sound share: waveforms [B, C, T] come with their rate, as `rate` in the metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..reward import Metadata, RewardError


@dataclass(frozen=True)
class Listening:
    """Checks that samples are sounds, for whoever scores them."""

    who: str

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError if the samples have no rate: then they are no sounds."""
        if any(not _is_rate(about.get("rate")) for about in metadata or [{}]):
            raise ValueError(
                f"{self.who} scores sounds, and these samples have no rate: use a model of sound, or give `rate` in "
                "the metadata of each prompt"
            )

    def rate(self, waveforms: Tensor, prompts: Sequence[str], metadata: Metadata) -> int:
        """The rate in Hz.

        Raises:
            RewardError: these are no waveforms [B, C, T], they have no rate, or their rates differ.
        """
        if waveforms.ndim != 3 or not waveforms.numel():
            raise RewardError(f"{self.who} needs waveforms of shape [B, C, T], not {list(waveforms.shape)}")
        if len(prompts) != len(waveforms):
            raise RewardError(f"{self.who} needs one prompt per waveform, not {len(prompts)} for {len(waveforms)}")
        rates: list[Any] = [about.get("rate") for about in metadata or [{}]]
        if not _is_rate(rates[0]) or any(each != rates[0] for each in rates):
            raise RewardError(
                f"{self.who} needs the rate of its waveforms: the same `rate`, in Hz, in the metadata of each"
            )
        return int(rates[0])


class OnSound:
    """A reward on waveforms [B, C, T] in [-1, 1]. Models of sound tell the rate (Hz) themselves."""

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError if the samples have no rate: then they are no sounds."""
        Listening(type(self).__name__).refuse(prompts, metadata)

    def rate(self, waveforms: Tensor, prompts: Sequence[str], metadata: Metadata) -> int:
        """The rate in Hz; raises RewardError if these are no waveforms, they have no rate, or their rates differ."""
        return Listening(type(self).__name__).rate(waveforms, prompts, metadata)


def _is_rate(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
