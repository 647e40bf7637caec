"""Qwen-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .family import Family, pack, statistics, unpack


class QwenImage(Family):
    """Hidden states of Qwen2.5-VL as text, of any length; a video autoencoder on one frame.

    Guidance keeps the length of each token's velocity.
    """

    pipelines = ("QwenImagePipeline",)
    packed = True
    text_tokens = 1024

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask = self.pipe.encode_prompt(prompts, max_sequence_length=self.text_tokens)
        return {"words": words, "mask": words.new_ones(words.shape[:2]) if mask is None else mask.to(words.dtype)}

    def empty(self) -> dict[str, Tensor]:
        return self.encode([" "])  # as the model's authors have it

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        b, _, h, w = x.shape
        v: Tensor = network(
            pack(x),
            timestep=t,
            guidance=torch.full_like(t, guidance) if network.config.guidance_embeds else None,
            encoder_hidden_states=condition["words"],
            encoder_hidden_states_mask=condition["mask"].long(),
            img_shapes=[[(1, h // 2, w // 2)]] * b,
            return_dict=False,
        )[0]
        return unpack(v, h, w)

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        given: dict[str, Any] = {"guidance_scale": None, "true_cfg_scale": guidance, "latents": pack(x)}
        if guidance != 1:
            given["negative_prompt"] = [" "] * len(prompts)
        return unpack(super().reference(prompts, x, steps, guidance, **given, **more), *x.shape[-2:])

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        mixed, before = pack(super().guided(v, v_0, scale)), pack(v)
        kept = mixed * (before.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
        return unpack(kept, *v.shape[-2:])

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, x0)
        image: Tensor = self.pipe.vae.decode(x0[:, :, None] * std + mean).sample
        return image[:, :, 0]

    def encode_images(self, images: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, images)
        z: Tensor = self.pipe.vae.encode(images[:, :, None]).latent_dist.mean
        return ((z - mean) / std)[:, :, 0]
