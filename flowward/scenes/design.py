"""The sizes of the networks of the built-in models. Reading them needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..prompts import scenes, scenes64

WIDTH = 128
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class Design:
    """The sizes of the three networks of a built-in model, and the words that it reads."""

    vocabulary: Callable[[], tuple[str, ...]]
    length: int  # of a prompt, in words
    size: int  # of a picture, in pixels
    width: int  # of the transformer
    layers: int
    heads: int
    latent_channels: int = LATENT_CHANNELS
    text_width: int = WIDTH


SMALL = Design(scenes.vocabulary, scenes.MAX_WORDS, 32, WIDTH, layers=6, heads=4)
LARGE = Design(scenes64.vocabulary, scenes64.MAX_WORDS, 64, width=160, layers=4, heads=5, latent_channels=8)
