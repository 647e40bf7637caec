"""Bria 3.2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..reading import Reader
from .family import Family, pack, positions, unpack


class Bria(Family):
    """FLUX.1 without CLIP, and with classifier-free guidance; T5's text is padded with zeros, and no text is zeros."""

    pipelines = ("BriaPipeline",)
    packed = True
    text_tokens, most_text = 128, 512
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})

    @property
    def patch(self) -> int:
        return 1  # the pipeline's scale has the 2 x 2 latent pixels of a token in it

    @property
    def shape(self) -> tuple[int, ...]:
        channels = self.pipe.transformer.config.in_channels // 4
        return (channels, 2 * self.height // self.multiple, 2 * self.width // self.multiple)

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words}

    def empty(self) -> dict[str, Tensor]:
        return {name: torch.zeros_like(each) for name, each in super().empty().items()}

    def readers(self) -> list[Reader]:
        return [self._longest("T5", self.pipe.tokenizer)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        rows, columns = positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device)
        places = torch.stack([torch.zeros_like(rows), rows, columns], 1).to(x.dtype)
        v: Tensor = network(
            pack(x),
            timestep=1000 * t,
            encoder_hidden_states=condition["words"],
            txt_ids=places.new_zeros(condition["words"].shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(v, *x.shape[-2:])

    def times(self, steps: int) -> tuple[float, ...]:
        """Without a shift by size: some of the times of training, before the scheduler's shift."""
        scheduler = self.scheduler()
        if scheduler.config.get("use_dynamic_shifting"):
            return super().times(steps)
        many = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(sigmas=[1 - int(each) / many for each in np.linspace(0, many - 1, steps)])
        return tuple(scheduler.sigmas.double().tolist())

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        return unpack(super().reference(prompts, x, steps, guidance, latents=pack(x), **more), *x.shape[-2:])
