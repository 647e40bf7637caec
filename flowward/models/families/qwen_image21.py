"""Qwen-Image 2.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reading import Reader
from .family import Family, padded
from .qwen_image import QwenImage


class QwenImage21(QwenImage):
    """Text of Qwen3-VL that never sees the image; the autoencoder has a channel of opacity, shown on white.

    An image has positions after those of the longest text of a call, so the pipeline's images depend on its batch. Here
    each is as in a batch of its own.
    """

    pipelines = ("QwenImage21Pipeline",)
    packed = False
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens, fixed_text = 0, "text of any length"  # of any length
    most_text: ClassVar[int | None] = None
    by_length = masks_text = True
    needs = ("torchvision",)  # for the processor in transformers
    guided = Family.guided

    @property
    def side(self) -> int:
        return 1024

    @property
    def tokens(self) -> int:
        return (self.height // self.pipe.vae_scale_factor) * (self.width // self.pipe.vae_scale_factor)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask, _ = self.pipe.encode_prompt(prompts)
        return padded(
            list(words) if mask is None else [row[kept.bool()] for row, kept in zip(words, mask, strict=True)]
        )

    def readers(self) -> list[Reader]:
        return []

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        words = condition["words"]
        image = torch.zeros(len(x), words.shape[1] + self.tokens // 4, dtype=torch.bool, device=x.device)
        image[:, words.shape[1] :] = True  # four tokens of an image are one place in its text
        v: Tensor = network(
            x.flatten(2).transpose(1, 2),
            timestep=t,
            encoder_hidden_states=words,
            img_shapes=[[(1, *x.shape[-2:])]] * len(x),
            img_mask=image,
            return_dict=False,
        )[0]
        return v[:, -self.tokens :].transpose(1, 2).reshape(x.shape)

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """One prompt at a time."""
        if guidance != 1:
            more["negative_prompt"] = [self.nothing]
        starts = x.flatten(2).transpose(1, 2).split(1)
        each = zip(prompts, starts, strict=True)
        found = [Family.reference(self, [one], x, steps, guidance, latents=start, **more) for one, start in each]
        return torch.cat(found).transpose(1, 2).reshape(x.shape)

    def decode(self, x0: Tensor) -> Tensor:
        image = super().decode(x0)
        opacity = (image[:, 3:] / 2 + 0.5).clamp(0, 1)
        return image[:, :3] * opacity + 1 - opacity

    def encode_images(self, images: Tensor) -> Tensor:
        return super().encode_images(torch.cat([images, torch.ones_like(images[:, :1])], 1))
