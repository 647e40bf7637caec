"""Ovis-Image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..reading import Reader, chat
from .family import Family, pack, positions, unpack


class OvisImage(Family):
    """Blocks like FLUX.1's; Qwen3 reads an instruction and the prompt, always padded to the maximum, with zeros.

    Image and text tokens share their position ids: those of the text are (0, k, k).
    """

    pipelines = ("OvisImagePipeline",)
    packed = True
    text_tokens = most_text = 256
    lora_loader = ("transformer.load_lora_adapter", {"use_safetensors": True})

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, *_ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words}

    def readers(self) -> list[Reader]:
        pipe = self.pipe
        if pipe.tokenizer is None:
            return []
        message = chat(pipe.tokenizer, enable_thinking=False)
        form, before = lambda text: message(pipe.system_prompt + text), pipe.user_prompt_begin_id
        return [self._longest("Qwen3", pipe.tokenizer, form=form, before=before, sliced=True)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        rows, columns = positions(x.shape[-2] // 2, x.shape[-1] // 2, x.device)
        order = torch.arange(condition["words"].shape[1], device=x.device)
        v: Tensor = network(
            pack(x),
            timestep=t,
            encoder_hidden_states=condition["words"],
            txt_ids=torch.stack([torch.zeros_like(order), order, order], 1).to(x.dtype),
            img_ids=torch.stack([torch.zeros_like(rows), rows, columns], 1).to(x.dtype),
            return_dict=False,
        )[0]
        return unpack(v, *x.shape[-2:])

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        return unpack(super().reference(prompts, x, steps, guidance, latents=pack(x), **more), *x.shape[-2:])
