"""LongCat-Image-Edit."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from ...prompts import Edit, Prompt
from ..reading import Reader
from .edits import Edits
from .family import Family, replaced
from .longcat_image import LongCatImage


class LongCatImageEdit(Edits, LongCatImage):
    """Blocks like FLUX.1's; Qwen2.5-VL reads the instruction beside the source at half its size.

    Position ids: 0, 1 and 2 for text, sample and source, then row and column, which begin after the text's. Text in
    quotation marks is read letter by letter.
    """

    pipelines = ("LongCatImageEditPipeline",)
    reads_sources = True
    guided = Family.guided  # without a limit

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        words = [self._read(prompt) for prompt in prompts]
        return {"words": torch.cat(words), **self.encode_sources(prompts)}

    def _read(self, prompt: Edit) -> Tensor:
        """[1, 512, width]

        Raises:
            ValueError: the text is too long, which the pipeline does not support.
        """
        parts = sys.modules[type(self.pipe).__module__].split_quotation(prompt.text)
        pieces = [piece for text, quoted in parts for piece in (text if quoted else [text])]
        many = sum(len(self.pipe.tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces)
        if many > self.text_tokens:
            raise ValueError(
                f"{type(self.pipe).__name__} reads at most {self.text_tokens} text tokens, but '{prompt.text[:60]}...' "
                f"has {many}; shorten it"
            )
        seen = self.pipe.image_processor.resize(self.for_pillow(prompt)[0], self.height // 2, self.width // 2)
        words: Tensor = self.pipe.encode_prompt([prompt.text], image=seen)[0]
        return words

    def readers(self) -> list[Reader]:
        return []  # a longer text is refused

    def sized_by(self) -> dict[str, Any]:
        return {}  # the pipeline's size is that of its source

    def shown(self, prompt: Prompt) -> dict[str, Any]:
        return {"image": self.for_pillow(prompt)[0]}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Run the pipeline with the samples' size, in the place of one megapixel."""
        size = lambda *_: (self.width, self.height)  # noqa: E731
        with replaced(sys.modules[type(self.pipe).__module__], "calculate_dimensions", size):
            return super().reference(prompts, x, steps, guidance, **more)
