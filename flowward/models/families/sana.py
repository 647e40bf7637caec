"""SANA."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..reading import Reader
from .family import Family


class Sana(Family):
    """Linear attention; latents are 32 times smaller than the image; Gemma encodes the prompt after an instruction."""

    pipelines = ("SanaPipeline",)
    cuts_patches = True
    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens = 300
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    @property
    def side(self) -> int:
        side: int = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return side

    @property
    def instruction(self) -> list[str]:
        """The lines before every prompt."""
        lines: list[str] = inspect.signature(type(self.pipe).__call__).parameters["complex_human_instruction"].default
        return lines

    def readers(self) -> list[Reader]:
        """The pipeline lower-cases prompts, and counts two tokens less for the instruction than it has."""
        before, tokenizer = "\n".join(self.instruction), self.pipe.tokenizer
        if tokenizer is None:
            return []
        own = len(tokenizer.encode(before)) - 2
        return [self._longest("Gemma", tokenizer, form=lambda text: before + text.lower().strip(), before=own)]

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, mask, _, _ = self.pipe.encode_prompt(
            prompts, False, max_sequence_length=self.text_tokens, complex_human_instruction=self.instruction
        )
        return {"words": words, "mask": mask.to(words.dtype)}

    def empty(self) -> dict[str, Tensor]:
        """The empty prompt, without the instruction."""
        words, mask, _, _ = self.pipe.encode_prompt([""], False, max_sequence_length=self.text_tokens)
        return {"words": words, "mask": mask.to(words.dtype)}

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            encoder_hidden_states=condition["words"],
            encoder_attention_mask=condition["mask"],
            timestep=1000 * network.config.get("timestep_scale", 1) * t,
            return_dict=False,
        )[0]
        return v[:, : x.shape[1]]  # some checkpoints also predict a variance

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), "use_resolution_binning": False}

    def decode(self, x0: Tensor) -> Tensor:
        image: Tensor = self.pipe.vae.decode(x0 / self.pipe.vae.config.scaling_factor).sample
        return image

    def encode_images(self, images: Tensor) -> Tensor:
        z: Tensor = self.pipe.vae.encode(images).latent
        return z * self.pipe.vae.config.scaling_factor
