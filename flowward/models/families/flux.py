"""FLUX.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .family import Family, pack, positions, unpack


class Flux(Family):
    """Latents packed 2 x 2, a shift that grows with the image, guidance as an input of the network (dev)."""

    pipelines = ("FluxPipeline",)
    guidance = "embedded"
    packed = True
    text_tokens = 512

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, pooled, _ = self.pipe.encode_prompt(prompts, None, max_sequence_length=self.text_tokens)
        return {"words": words, "pooled": pooled}

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        _, _, h, w = x.shape
        rows, columns = positions(h // 2, w // 2, x.device)
        places = torch.stack([torch.zeros_like(rows), rows, columns], 1).to(x.dtype)
        v: Tensor = network(
            pack(x),
            timestep=t,
            guidance=torch.full_like(t, guidance) if network.config.guidance_embeds else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=condition["words"],
            txt_ids=places.new_zeros(condition["words"].shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(v, h, w)

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        return unpack(super().reference(prompts, x, steps, guidance, latents=pack(x), **more), *x.shape[-2:])
