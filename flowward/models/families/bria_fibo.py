"""Bria Fibo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...prompts import text_of
from ..reading import Reader
from .family import Family, padded, positions
from .qwen_image import QwenImage


class BriaFibo(Family):
    """Blocks like FLUX.1's, each with a layer of SmolLM3, the last ones first; one token for a latent pixel.

    Text is as long as it is, and has no positions.
    """

    pipelines = ("BriaFiboPipeline",)
    masks_text = True
    text_tokens = most_text = 3000
    decode, encode_images = QwenImage.decode, QwenImage.encode_images

    @property
    def patch(self) -> int:
        return 1

    @property
    def blocks(self) -> int:
        """The blocks of the network, each of which gets a layer."""
        known = self.pipe.transformer.config
        return int(known.num_layers + known.num_single_layers)

    def form(self, text: str) -> str:
        """A prompt as the model knows it."""
        return text

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        """Prompt by prompt: the pipeline reads empty ones otherwise beside others."""
        rows = [self._read(self.form(text_of(prompt))) for prompt in prompts]
        return padded(rows) | self.encode_sources(prompts)

    def _read(self, prompt: str) -> Tensor:
        """[tokens, layers, width]: as many of the last layers as there are blocks, or all."""
        _, layers, _ = self.pipe.get_prompt_embeds([prompt], max_sequence_length=self.text_tokens)
        return torch.stack(layers[-max(2, self.blocks) :], 2)[0]

    def readers(self) -> list[Reader]:
        return [self._longest("SmolLM3", self.pipe.tokenizer, form=self.form)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images, (rows, columns) = self.seen(x, condition), positions(x.shape[-2], x.shape[-1], x.device)
        places = [torch.stack([torch.full_like(rows, number), rows, columns], 1) for number in range(len(images))]
        tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in images], 1)
        layers = list(condition["words"].unbind(2))
        mask = torch.cat([condition["mask"], x.new_ones(tokens.shape[:2])], 1)
        v: Tensor = network(
            tokens,
            timestep=1000 * t,
            encoder_hidden_states=torch.cat([layers[-1], layers[-2]], -1),
            text_encoder_layers=layers + layers[-1:] * (self.blocks - len(layers)),
            txt_ids=x.new_zeros(condition["words"].shape[1], 3),
            img_ids=torch.cat(places).to(x.dtype),
            joint_attention_kwargs={"attention_mask": mask.bool()[:, None, None]},
            return_dict=False,
        )[0]
        return v[:, : self.tokens].transpose(1, 2).reshape(x.shape)

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        more["latents"] = x.flatten(2).transpose(1, 2)
        return super().reference(prompts, x, steps, guidance, **more).transpose(1, 2).reshape(x.shape)
