"""ERNIE-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..reading import Reader
from .family import lengths, padded
from .flux2 import Flux2Latents


class ErnieImage(Flux2Latents):
    """One stream of image and text; Mistral 3 reads the prompt; the autoencoder of FLUX.2.

    The pipeline can also let a language model write the prompt anew; here that is switched off.
    """

    pipelines = ("ErnieImagePipeline",)
    masks_text = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    unused = ("pe", "pe_tokenizer")
    text_tokens, fixed_text = 0, "text of any length"  # as long as its tokenizer takes it

    @property
    def side(self) -> int:
        return 1024

    @property
    def patch(self) -> int:
        patch: int = self.pipe.transformer.config.patch_size
        return patch

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipe.vae_scale_factor
        return (self.pipe.transformer.config.in_channels, self.height // scale, self.width // scale)

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        rows = self.pipe.encode_prompt(list(prompts), self.pipe.text_encoder.device)
        return padded(rows)

    def readers(self) -> list[Reader]:
        tokenizer = self.pipe.tokenizer
        return [] if tokenizer is None else [Reader("Mistral", tokenizer, tokenizer.model_max_length)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            timestep=1000 * t,
            text_bth=condition["words"],
            text_lens=lengths(condition),
            return_dict=False,
        )[0]
        return v

    def times(self, steps: int) -> tuple[float, ...]:
        scheduler = self.scheduler()
        scheduler.set_timesteps(sigmas=torch.linspace(1, 0, steps + 1)[:-1])
        return tuple(scheduler.sigmas.double().tolist())

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), "use_pe": False}
