"""SANA-Video, from text or an image to video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sana import Sana
from .video import KeepsFirst, Video


class SanaVideo(Sana, Video):
    """SANA's text with another instruction; the autoencoder is Wan's, that of LTX-2, or one without statistics."""

    pipelines = ("SanaVideoPipeline",)
    own = (480, 832, 81)
    count = "frames"
    decode, encode_images = Video.decode, Video.encode_images

    @property
    def places(self) -> int:
        places: int = self.pipe.transformer.config.rope_max_seq_len
        return places


class SanaImageToVideo(KeepsFirst, SanaVideo):
    """The source is the first latent frame. A prompt without text has no instruction either."""

    pipelines = ("SanaImageToVideoPipeline",)

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        rows = [Sana.encode(self, [prompt.text]) if prompt.text else self.empty() for prompt in prompts]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} | self.beside_text(prompts)
