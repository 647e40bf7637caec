"""Kandinsky 5 Image Lite, image to image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...prompts import Edit
from ..reading import Reader
from .edits import Edits
from .family import Family, padded
from .kandinsky5 import Kandinsky5


class Kandinsky5Edit(Edits, Kandinsky5):
    """Qwen2.5-VL reads the instruction beside the source; the network gets the source as more channels of each pixel.

    The pipeline draws the source's latents at random; here they are the means.
    """

    pipelines = ("Kandinsky5I2IPipeline",)
    reads_sources = True
    text_tokens, fixed_text = 1024, "1024 tokens of text and source"

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        rows = [self._read(prompt) for prompt in prompts]
        pooled = torch.cat([pooled for _, pooled in rows])
        return {**padded([words for words, _ in rows]), "pooled": pooled, **self.encode_sources(prompts)}

    def _read(self, prompt: Edit) -> tuple[Tensor, Tensor]:
        """[tokens, width] and [1, width] of one prompt."""
        words, pooled, _ = self.pipe.encode_prompt([prompt.text], image=self.for_pillow(prompt))
        return words[0], pooled

    def readers(self) -> list[Reader]:
        return []

    def pixels(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """Samples, their sources and ones."""
        source = condition["source"][:, 0].to(x)
        return super().pixels(torch.cat([x, source, torch.ones_like(x[:, :1])], 1), condition)

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        seen = {"latents": self.pixels(x, self.encode_sources([prompt])), **self.shown(prompt)}
        return Family.reference(self, [prompt.text], x, steps, guidance, **seen, **more)

    reference = Kandinsky5.reference
