"""LongCat-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..reading import Reader
from .family import Family, pack, positions, unpack


class LongCatImage(Family):
    """Blocks like FLUX.1's; text is always 512 tokens of Qwen2.5-VL, and its padding has an effect.

    Guidance never makes the velocity of a token longer than with the prompt alone. The pipeline can also let the
    language model write the prompt anew; here that is switched off.
    """

    pipelines = ("LongCatImagePipeline",)
    packed = True
    text_tokens, fixed_text = 512, "512 text tokens, always"
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})
    needs = ("torchvision",)  # for the processor in transformers

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        words, _ = self.pipe.encode_prompt(prompts)
        return {"words": words}

    def readers(self) -> list[Reader]:
        return [self._longest("Qwen2.5-VL", self.pipe.tokenizer, sliced=True)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        images, words = self.seen(x, condition), condition["words"]
        order = torch.arange(words.shape[1], device=x.device)
        # images have positions after those of the text, and a number each
        rows, columns = (each + len(order) for each in positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device))
        places = [torch.stack([torch.full_like(rows, 1 + k), rows, columns], 1) for k in range(len(images))]
        v: Tensor = network(
            torch.cat([pack(each) for each in images], 1),
            timestep=t,
            encoder_hidden_states=words,
            txt_ids=torch.stack([torch.zeros_like(order), order, order], 1).float(),
            img_ids=torch.cat(places).float(),
            return_dict=False,
        )[0]
        return unpack(v[:, : self.tokens], *x.shape[-2:])

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        mixed, before = pack(super().guided(v, v_0, scale)), pack(v)
        kept = before.norm(dim=-1, keepdim=True) / (mixed.norm(dim=-1, keepdim=True) + 1e-8)
        return unpack(mixed * kept.clamp(max=1), *v.shape[-2:])

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), "enable_prompt_rewrite": False}

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        more |= {"negative_prompt": [self.nothing] * len(prompts), "latents": pack(x)}
        return unpack(super().reference(prompts, x, steps, guidance, **more), *x.shape[-2:])
