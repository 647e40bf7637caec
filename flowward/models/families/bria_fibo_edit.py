"""Bria Fibo Edit."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ...prompts import prompt_of, sources_of, text_of
from ..reading import Reader
from .edits import Edits
from .family import padded, positions, statistics


class BriaFiboEdit(Edits):
    """Every block of the network reads another layer of SmolLM3; a video autoencoder applied to one frame.

    The model reads JSON with the key `edit_instruction`; other prompts are put under this key. Sources are optional;
    the tokens of source k = 1, 2, ... have k as the first of their three position ids.
    """

    pipelines = ("BriaFiboEditPipeline",)
    masks_text = True
    sources = range(5)  # the pipeline has no limit
    inputs = "prompt=prompt, image=image"
    text_tokens = most_text = 3000

    @property
    def patch(self) -> int:
        return 1

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def form(self, text: str) -> str:
        """A prompt as the model knows it."""
        known = sys.modules[type(self.pipe).__module__]
        return text if not text or known.is_valid_edit_json(text) else json.dumps({"edit_instruction": text})

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        rows = [self._read(self.form(text_of(prompt))) for prompt in prompts]
        layers = nn.utils.rnn.pad_sequence([layers for _, layers in rows], batch_first=True)
        return {**padded([words for words, _ in rows]), "layers": layers, **self.encode_sources(prompts)}

    def _read(self, text: str) -> tuple[Tensor, Tensor]:
        """[tokens, width] of one prompt, and the layers for the blocks: [tokens, blocks, width]."""
        words, layers, _ = self.pipe.get_prompt_embeds([text], max_sequence_length=self.text_tokens)
        network = self.pipe.transformer
        many = len(network.transformer_blocks) + len(network.single_transformer_blocks)
        chosen = [*layers[-many:], *[layers[-1]] * (many - len(layers))]
        return words[0], torch.stack(chosen, 2)[0]

    def readers(self) -> list[Reader]:
        return [self._longest("SmolLM3", self.pipe.tokenizer, form=self.form)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images, words = self.seen(x, condition), condition["words"]
        rows, columns = positions(x.shape[-2], x.shape[-1], x.device)
        places = [torch.stack([torch.full_like(rows, number), rows, columns], 1) for number in range(len(images))]
        tokens = torch.cat([each.flatten(2).transpose(1, 2) for each in images], 1)
        mask = torch.cat([condition["mask"].bool(), torch.ones_like(tokens[..., 0], dtype=torch.bool)], 1)
        v: Tensor = network(
            tokens,
            timestep=1000 * t,
            encoder_hidden_states=words,
            text_encoder_layers=list(condition["layers"].unbind(2)),
            joint_attention_kwargs={"attention_mask": mask[:, None, None]},
            txt_ids=words.new_zeros(words.shape[1], 3),
            img_ids=torch.cat(places).to(words.dtype),
            return_dict=False,
        )[0]
        return v[:, : self.tokens].transpose(1, 2).reshape(x.shape)

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        found = []
        for prompt, start in zip(prompts, x.split(1), strict=True):
            packed, same = start.flatten(2).transpose(1, 2), prompt_of(self.form(text_of(prompt)), sources_of(prompt))
            found.append(super().reference([same], start, steps, guidance, latents=packed, **more))
        return torch.cat(found).transpose(1, 2).reshape(x.shape)

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, x0)
        image: Tensor = self.pipe.vae.decode(x0[:, :, None] * std + mean).sample
        return image[:, :, 0]

    def encode_images(self, images: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, images)
        z: Tensor = self.pipe.vae.encode(images[:, :, None]).latent_dist.mean
        return ((z - mean) / std)[:, :, 0]
