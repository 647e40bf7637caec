"""Kandinsky 5 Image Lite, image to image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ...prompts import Edit
from .edits import Edits, padded, replaced


class Kandinsky5Edit(Edits):
    """Qwen2.5-VL reads the instruction beside the source; the network gets the source as more channels of each pixel.

    The network has no mask for text. The pipeline draws the source's latents at random; here they are the means.
    """

    pipelines = ("Kandinsky5I2IPipeline",)
    targets = ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer")
    reads_sources = True
    masks_text = False
    needs = ("torchvision",)  # for the image processor in transformers
    text_tokens, fixed_text = 1024, "1024 tokens of text and source"
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    @property
    def side(self) -> int:
        return 1024

    @property
    def multiple(self) -> int:
        multiple: int = self.pipe.vae_scale_factor_spatial * self.pipe.transformer.config.patch_size[1]
        return multiple

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipe.vae_scale_factor_spatial
        return (self.pipe.transformer.config.in_visual_dim, self.height // scale, self.width // scale)

    @property
    def parts(self) -> dict[str, int]:
        known = self.pipe.transformer.config
        return {"attention heads": known.model_dim // sum(known.axes_dims), "tokens": self.tokens}

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        rows = [self._read(prompt) for prompt in prompts]
        pooled = torch.cat([pooled for _, pooled in rows])
        return {**padded([words for words, _ in rows]), "pooled": pooled, **self.encode_sources(prompts)}

    def _read(self, prompt: Edit) -> tuple[Tensor, Tensor]:
        """[tokens, width] and [1, width] of one prompt."""
        words, pooled, _ = self.pipe.encode_prompt([prompt.text], image=self.for_pillow(prompt))
        return words[0], pooled

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        v: Tensor = network(
            self._beside(x, condition["source"]),
            encoder_hidden_states=condition["words"],
            pooled_projections=condition["pooled"],
            timestep=1000 * t,
            visual_rope_pos=[torch.arange(many, device=x.device) for many in (1, h, w)],
            text_rope_pos=torch.arange(condition["words"].shape[1], device=x.device),
            return_dict=False,
        )
        return v[:, 0].movedim(-1, 1)

    def _beside(self, x: Tensor, source: Tensor) -> Tensor:
        """Samples, their sources and ones, as channels of each pixel: [B, 1, h, w, 2 C + 1]."""
        return torch.cat([x, source[:, 0].to(x), torch.ones_like(x[:, :1])], 1).movedim(1, -1)[:, None]

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Run the pipeline at this size, which is none of its own, from noise with the source's latents beside it."""
        found = []
        with replaced(self.pipe, "resolutions", [(self.width, self.height)]):
            for prompt, start in zip(prompts, x.split(1), strict=True):
                both = self._beside(start, self.encode_sources([prompt])["source"])
                found.append(super().reference([prompt], start, steps, guidance, latents=both, **more))
        return torch.cat(found)[:, 0].movedim(-1, 1)

    def decode(self, x0: Tensor) -> Tensor:
        image: Tensor = self.pipe.vae.decode(x0 / self.pipe.vae.config.scaling_factor).sample
        return image

    def encode_images(self, images: Tensor) -> Tensor:
        z: Tensor = self.pipe.vae.encode(images).latent_dist.mean
        return z * self.pipe.vae.config.scaling_factor
