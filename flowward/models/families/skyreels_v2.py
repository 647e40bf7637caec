"""SkyReels V2, text to video."""

from __future__ import annotations

from .wan import Wan


class SkyReelsV2(Wan):
    """Wan 2.1's network and autoencoder with other weights and another default size."""

    pipelines = ("SkyReelsV2Pipeline",)
    own = (544, 960, 97)
    needs = ("ftfy",)
