"""LTX-Video, from text or an image to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ..reading import Reader
from .video import KeepsFirst, Video, masked

RATE = 25  # frames per second that the pipeline assumes


class LTX(Video):
    """Videos of 8 n + 1 frames; tokens are latent pixels; their positions are seconds and pixels of the video."""

    pipelines = ("LTXPipeline",)
    masks_text = True
    own = (512, 704, 161)
    scales = ("vae_temporal_compression_ratio", "vae_spatial_compression_ratio")
    text_tokens = 128
    sigmas: ClassVar[Literal["scheduler", "even"]] = "even"

    @property
    def length(self) -> int:
        return self.shape[1] * self.tokens

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        words, mask, _, _ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return masked(words, mask)

    def readers(self) -> list[Reader]:
        return [self._longest("T5", self.pipe.tokenizer)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        _, _, frames, height, width = x.shape
        v: Tensor = network(
            tokens(x),
            encoder_hidden_states=condition["words"],
            timestep=1000 * t,
            encoder_attention_mask=condition["mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=(self.shorter / RATE, self.smaller, self.smaller),
            return_dict=False,
        )[0]
        return v.transpose(1, 2).view_as(x)

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        found = super().reference(prompts, x, steps, guidance, latents=tokens(x), **more)
        return found.transpose(1, 2).view_as(x)

    def decode(self, x0: Tensor) -> Tensor:
        """As the pipeline does without options: a decoder with a time gets 0, and no noise is added."""
        (mean, std), vae = self.statistics(x0), self.pipe.vae
        t = torch.zeros(len(x0), dtype=x0.dtype, device=x0.device) if vae.config.timestep_conditioning else None
        video: Tensor = vae.decode(x0 * std + mean, t).sample
        return video.transpose(1, 2)


class LTXImageToVideo(KeepsFirst, LTX):
    """The pipeline draws the latents of the source at random; here they are the most likely ones."""

    pipelines = ("LTXImageToVideoPipeline",)


def tokens(x: Tensor) -> Tensor:
    """[B, C, F, H, W] to [B, F H W, C]."""
    return x.flatten(2).transpose(1, 2)
