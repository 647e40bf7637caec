"""Bria Fibo 2."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, ClassVar

from diffusers.pipelines.bria_fibo2.pipeline_bria_fibo2 import DEFAULT_NEGATIVE_PROMPT
from torch import Tensor

from ..reading import Reader
from .family import pack, padded, unpack
from .flux2 import Flux2Latents


class BriaFibo2(Flux2Latents):
    """Tokens that gather the text, and layers of Qwen3-VL in some blocks; the autoencoder of FLUX.2.

    The pipeline can also show the language model pictures of words that shall be in the image; here it does not.
    """

    pipelines = ("BriaFibo2Pipeline",)
    masks_text = True
    cuts_patches = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens, fixed_text = 4096, "at most 4096 text tokens"
    nothing: ClassVar[str] = DEFAULT_NEGATIVE_PROMPT
    needs = ("torchvision",)  # for the processor in transformers

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        return self._read([self._written(prompt) for prompt in prompts])

    def empty(self) -> dict[str, Tensor]:
        return self._read([self.nothing])

    def _written(self, prompt: str) -> str:
        """A prompt in JSON as the pipeline writes it anew; any other text as it is."""
        caption, _ = self.pipe._parse_prompt(prompt)
        if isinstance(caption, str):
            return prompt
        return json.dumps(caption or {}, separators=(",", ":"), ensure_ascii=False)

    def _read(self, texts: list[str]) -> dict[str, Tensor]:
        layers, mask = self.pipe.encode_prompt(texts)
        rows = layers.transpose(1, 2)
        return padded(list(rows) if mask is None else [row[kept] for row, kept in zip(rows, mask, strict=True)])

    def readers(self) -> list[Reader]:
        tokenizer = getattr(self.pipe.processor, "tokenizer", self.pipe.processor)
        form = self.pipe.prompt_template_encode.format
        return [self._longest("Qwen3-VL", tokenizer, form=lambda text: form(self._written(text)))]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            timestep=t,
            encoder_hidden_states=condition["words"].transpose(1, 2),
            encoder_attention_mask=condition["mask"].bool(),
            return_dict=False,
        )[0]
        return v

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), "render_text_images": False}

    def decode(self, x0: Tensor) -> Tensor:
        b, _, h, w = x0.shape
        return super().decode(pack(x0).transpose(1, 2).reshape(b, -1, h // 2, w // 2))

    def encode_images(self, images: Tensor) -> Tensor:
        x0 = super().encode_images(images)
        return unpack(x0.flatten(2).transpose(1, 2), 2 * x0.shape[-2], 2 * x0.shape[-1])
