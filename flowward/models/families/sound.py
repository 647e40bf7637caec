"""Models of sound: samples are [channels, time] in the latent space of an autoencoder, decoded to waveforms [C, T]."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, ClassVar

from diffusers.loaders import PeftAdapterMixin
from torch import Tensor, nn

from ...process import medium
from .family import Family


class Sound(Family):
    """A diffusers pipeline that makes sounds of one length. Its samples are the pipeline's latents, channels first.

    Args:
        pipe: the pipeline; its scheduler is never changed.
        height, width, frames: refused: sound has none.
        text_tokens: maximum per prompt (None: the pipeline's default).
        seconds: of the finished sound (None: `usual`).

    Raises:
        ValueError: the model does not support this length, or an option is for images.
    """

    usual: ClassVar[float] = 10.0  # seconds
    most: ClassVar[float] = float("inf")  # seconds
    height = width = 0
    frames = 1

    def __init__(
        self,
        pipe: Any,
        height: int | None = None,
        width: int | None = None,
        frames: int | None = None,
        text_tokens: int | None = None,
        seconds: float | None = None,
    ):
        kind = type(pipe).__name__
        if not (height is width is frames is None):
            raise ValueError(f"{kind} makes sound, which has no size and no frames: give --seconds in their place")
        self.pipe, self.seconds = pipe, float(self.usual if seconds is None else seconds)
        if not isfinite(self.seconds) or not 0 < self.seconds <= self.longest:
            raise ValueError(f"{kind} makes sounds of at most {self.longest:g} seconds, not {self.seconds:g}")
        if self.steps < 1:
            raise ValueError(f"{kind} makes sounds of at least {self.hop / self.rate:.3g} s, not {self.seconds:g}")
        self._limit(text_tokens)

    @property
    def longest(self) -> float:
        """Of a sound, in seconds."""
        return self.most

    @property
    def rate(self) -> int:
        """Samples of a waveform per second (Hz)."""
        rate: int = self.pipe.vae.config.sampling_rate
        return rate

    @property
    def hop(self) -> int:
        """Samples of a waveform per step of the latent space."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """Length of a sample, in steps of the latent space."""
        raise NotImplementedError

    @property
    def heard(self) -> tuple[int, int]:
        """Channels and length of a waveform."""
        return self.pipe.vae.config.audio_channels, self.steps * self.hop

    @property
    def medium(self) -> medium.Medium:
        return medium.waveforms(*self.heard, self.rate)

    @property
    def tokens(self) -> int:
        return self.steps

    def joined(self, transformers: Mapping[str, Any]) -> Any:
        """The transformer, with the methods for adapters that diffusers gives most of its transformers."""
        return adaptable(transformers["transformer"])

    def encode_images(self, images: Tensor) -> Tensor:
        """Latents of waveforms [B, C, T]."""
        z: Tensor = self.pipe.vae.encode(images).latent_dist.mean
        return z


ADAPTABLE = (  # how a reader of an export does the same
    "from diffusers.loaders import PeftAdapterMixin",
    "kind = type(pipe.transformer)",
    "pipe.transformer.__class__ = type(kind.__name__, (kind, PeftAdapterMixin), {})  # diffusers leaves this out",
)


def adaptable(network: nn.Module) -> nn.Module:
    """The same network, whose class has the methods for adapters."""
    if not isinstance(network, PeftAdapterMixin):
        kind = type(network)
        network.__class__ = type(kind.__name__, (kind, PeftAdapterMixin), {})
    return network
