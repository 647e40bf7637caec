"""SANA-Video, text to video."""

from __future__ import annotations

from .sana import Sana
from .video import Video


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
