"""What rewards on sound share: waveforms [B, C, T] come with their rate, as `rate` in the metadata."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..reward import Metadata, RewardError


class OnSound:
    """A reward on waveforms [B, C, T] in [-1, 1]. Models of sound tell the rate (Hz) themselves."""

    def refuse(self, prompts: Sequence[str], metadata: Metadata = None) -> None:
        """Raise ValueError if the samples have no rate: then they are no sounds."""
        if any(not _is_rate(about.get("rate")) for about in metadata or [{}]):
            raise ValueError(
                f"{type(self).__name__} scores sounds, and these samples have no rate: use a model of sound, or give "
                "`rate` in the metadata of each prompt"
            )

    def rate(self, waveforms: Tensor, prompts: Sequence[str], metadata: Metadata) -> int:
        """The rate in Hz.

        Raises:
            RewardError: these are no waveforms, they have no rate, or their rates differ.
        """
        name = type(self).__name__
        if waveforms.ndim != 3 or not waveforms.numel():
            raise RewardError(f"{name} needs waveforms of shape [B, C, T], not {list(waveforms.shape)}")
        if len(prompts) != len(waveforms):
            raise RewardError(f"{name} needs one prompt per waveform, not {len(prompts)} for {len(waveforms)}")
        rates = {about.get("rate") for about in metadata or [{}]}
        if len(rates) != 1 or not _is_rate(rate := rates.pop()):
            raise RewardError(f"{name} needs the rate of its waveforms: the same `rate`, in Hz, in the metadata of each")
        assert isinstance(rate, int)
        return rate


def _is_rate(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0
