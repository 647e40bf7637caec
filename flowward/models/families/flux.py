"""FLUX.1, and FLUX.1-Kontext, which edits images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...process.distilled import Sign
from ...prompts import text_of
from ..reading import Reader
from .edits import Edits
from .family import Family, Guidance, pack, positions, unpack


class Flux(Family):
    """Packs latents 2 x 2; its shift grows with the image size; guidance is a network input (dev) or absent."""

    pipelines = ("FluxPipeline",)
    guidance: ClassVar[Guidance] = "embedded"
    published = 3.5
    packed = True
    text_tokens = most_text = 512

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        self.guidance = "embedded" if pipe.transformer.config.guidance_embeds else "none"  # type: ignore[misc]

    def distilled(self) -> list[Sign]:
        """Also that there is no input for guidance, as in FLUX.1-schnell and in models that undo its distillation."""
        without = Sign("`guidance_embeds: false`", "transformer/config.json", "likely")
        return [*super().distilled(), *[without] * (self.guidance == "none")]

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, pooled, _ = self.pipe.encode_prompt(prompts, None, max_sequence_length=self.text_tokens)
        return {"words": words, "pooled": pooled}

    def readers(self) -> list[Reader]:
        short = Reader("CLIP", self.pipe.tokenizer, self.pipe.tokenizer_max_length)
        return [short, self._longest("T5", self.pipe.tokenizer_2)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images = self.seen(x, condition)
        places = torch.cat([_places(number, each) for number, each in enumerate(images)])
        v: Tensor = network(
            torch.cat([pack(each) for each in images], 1),
            timestep=t,
            guidance=torch.full_like(t, guidance) if network.config.guidance_embeds else None,
            pooled_projections=condition["pooled"],
            encoder_hidden_states=condition["words"],
            txt_ids=places.new_zeros(condition["words"].shape[1], 3),
            img_ids=places,
            return_dict=False,
        )[0]
        return unpack(v[:, : self.tokens], *x.shape[-2:])

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        return unpack(super().reference(prompts, x, steps, guidance, latents=pack(x), **more), *x.shape[-2:])


class FluxKontext(Edits, Flux):
    """The source's tokens follow those of the sample; the first of their three position ids tells them apart."""

    pipelines = ("FluxKontextPipeline",)
    published = 2.5

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        return super().encode(list(map(text_of, prompts))) | self.encode_sources(prompts)

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), "max_area": self.height * self.width, "_auto_resize": False}


def _places(number: int, x: Tensor) -> Tensor:
    """Position ids [h/2 w/2, 3] of the tokens of latents [B, C, h, w]: image number, row and column."""
    rows, columns = positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device)
    return torch.stack([torch.full_like(rows, number), rows, columns], 1).to(x.dtype)
