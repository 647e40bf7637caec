"""Chroma."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.transformers.transformer_chroma import ChromaSingleTransformerBlock
from torch import Tensor

from ..reading import Reader
from .family import Family, pack, positions, unpack


class Chroma(Family):
    """FLUX.1 without CLIP, and with classifier-free guidance; T5's padding is masked, except its first token.

    The mask is a number, as in the pipeline: pairs of tokens that it keeps get 1 more in their attention score.
    """

    pipelines = ("ChromaPipeline",)
    packed = True
    text_tokens = most_text = 512

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, _, mask, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words, "kept": mask}  # not "mask", whose padding may be left out: here it has some effect

    def readers(self) -> list[Reader]:
        return [self._longest("T5", self.pipe.tokenizer)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        rows, columns = positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device)
        places = torch.stack([torch.zeros_like(rows), rows, columns], 1).to(x.dtype)
        words = condition["words"]
        mask = torch.cat([condition["kept"].to(x.dtype), x.new_ones(len(x), len(places))], 1)
        with _checkpointed_with(mask, network):
            v: Tensor = network(
                pack(x),
                timestep=t,
                encoder_hidden_states=words,
                txt_ids=places.new_zeros(words.shape[1], 3),
                img_ids=places,
                attention_mask=mask,
                return_dict=False,
            )[0]
        return unpack(v, *x.shape[-2:])

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        return unpack(super().reference(prompts, x, steps, guidance, latents=pack(x), **more), *x.shape[-2:])


@contextmanager
def _checkpointed_with(mask: Tensor, network: Any) -> Iterator[None]:
    """Gradient checkpointing that gives the single blocks their mask: diffusers leaves it out."""
    if not network.gradient_checkpointing:
        yield
        return
    plain = network._gradient_checkpointing_func

    def checkpointed(block: Any, *given: Any) -> Any:
        return plain(block, *given, *[mask] * isinstance(block, ChromaSingleTransformerBlock))

    network._gradient_checkpointing_func = checkpointed
    try:
        yield
    finally:
        network._gradient_checkpointing_func = plain
