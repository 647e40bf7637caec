"""Lumina-Image 2.0."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..reading import Reader
from .family import Family


class Lumina2(Family):
    """One stream of text and image; Gemma reads an instruction and the prompt; the network takes 1 - t, and returns -v.

    Guidance keeps the norm of each row of latent pixels. The empty prompt has no instruction.
    """

    pipelines = ("Lumina2Pipeline",)
    masks_text = True
    cuts_patches = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens = 256  # with the instruction

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        # text has positions 0, 1, ...; the image gets the next one
        self.most_text = min(512, pipe.transformer.config.axes_lens[0] - 1)  # type: ignore[misc]
        super().__init__(pipe, *size, **more)

    @property
    def places(self) -> int:
        places: int = min(self.pipe.transformer.config.axes_lens[1:])
        return places

    @property
    def length(self) -> int:
        """The pipeline counts channels, not tokens."""
        channels: int = self.pipe.transformer.config.in_channels
        return channels

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask, _, _ = self.pipe.encode_prompt(prompts, False, max_sequence_length=self.text_tokens)
        return {"words": words, "mask": mask.to(words.dtype)}

    def empty(self) -> dict[str, Tensor]:
        _, _, words, mask = self.pipe.encode_prompt([""], True, max_sequence_length=self.text_tokens)
        return {"words": words, "mask": mask.to(words.dtype)}

    def readers(self) -> list[Reader]:
        before = f"{self.pipe.system_prompt} <Prompt Start> "
        return [self._longest("Gemma", self.pipe.tokenizer, form=lambda text: before + text)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            timestep=1 - t,
            encoder_hidden_states=condition["words"],
            encoder_attention_mask=condition["mask"].long(),  # bf16 cannot count past 256
            return_dict=False,
        )[0]
        return -v

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        mixed = super().guided(v, v_0, scale)
        return mixed * (v.norm(dim=-1, keepdim=True) / mixed.norm(dim=-1, keepdim=True))
