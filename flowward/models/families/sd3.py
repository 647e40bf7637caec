"""Stable Diffusion 3 and 3.5, medium and large."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..reading import Reader
from .family import Family


class StableDiffusion3(Family):
    """Joint attention over tokens of two CLIP encoders, T5 and the image; time shift 3."""

    pipelines = ("StableDiffusion3Pipeline",)
    text_tokens, most_text = 256, 512
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    @property
    def patch(self) -> int:
        patch: int = self.pipe.transformer.config.patch_size
        return patch

    @property
    def places(self) -> int:
        places: int = self.pipe.transformer.config.pos_embed_max_size
        return places

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, _, pooled, _ = self.pipe.encode_prompt(
            prompts, None, None, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words, "pooled": pooled}

    def readers(self) -> list[Reader]:
        pipe = self.pipe
        two = [Reader("CLIP", each, pipe.tokenizer_max_length) for each in (pipe.tokenizer, pipe.tokenizer_2)]
        return [*two, self._longest("T5", pipe.tokenizer_3)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            timestep=1000 * t,
            encoder_hidden_states=condition["words"],
            pooled_projections=condition["pooled"],
            return_dict=False,
        )[0]
        return v
