"""LongCat-Image-Edit."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...prompts import Edit, Prompt
from .edits import Edits
from .family import pack, positions, replaced, unpack


class LongCatImageEdit(Edits):
    """Blocks like FLUX.1's; Qwen2.5-VL reads the instruction beside the source at half its size.

    Position ids: 0, 1 and 2 for text, sample and source, then row and column, which begin after the text's. Text in
    quotation marks is read letter by letter.
    """

    pipelines = ("LongCatImageEditPipeline",)
    packed = True
    reads_sources = True
    needs = ("torchvision",)  # for the image processor in transformers
    text_tokens, fixed_text = 512, "512 text tokens, always"
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

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

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images, words = self.seen(x, condition), condition["words"]
        order = torch.arange(words.shape[1], device=x.device)
        rows, columns = (each + len(order) for each in positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device))
        kinds = [torch.stack([torch.full_like(rows, 1 + k), rows, columns], 1) for k in range(len(images))]
        v: Tensor = network(
            torch.cat([pack(each) for each in images], 1),
            timestep=t,
            encoder_hidden_states=words,
            txt_ids=torch.stack([torch.zeros_like(order), order, order], 1).float(),
            img_ids=torch.cat(kinds).double(),
            return_dict=False,
        )[0]
        return unpack(v[:, : self.tokens], *x.shape[-2:])

    def sized_by(self) -> dict[str, Any]:
        return {}  # the pipeline's size is that of its source

    def shown(self, prompt: Prompt) -> dict[str, Any]:
        return {"image": self.for_pillow(prompt)[0]}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Run the pipeline with the samples' size, in the place of one megapixel."""
        size = lambda *_: (self.width, self.height)  # noqa: E731
        with replaced(sys.modules[type(self.pipe).__module__], "calculate_dimensions", size):
            found = [
                super(LongCatImageEdit, self).reference([prompt], start, steps, guidance, latents=pack(start), **more)
                for prompt, start in zip(prompts, x.split(1), strict=True)
            ]
        return unpack(torch.cat(found), *x.shape[-2:])
