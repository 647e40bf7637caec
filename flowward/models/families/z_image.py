"""Z-Image, Z-Image-Turbo, and Z-Image-Omni without images to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.transformers.transformer_z_image import SEQ_MULTI_OF
from torch import Tensor

from ..reading import Reader, chat
from .family import Family, lengths, padded


class ZImage(Family):
    """One stream of image and text tokens; the network takes lists and 1 - t, and returns -v.

    The pipeline's guidance scale g adds g (v - v_0); it equals flowward's scale 1 + g.
    """

    pipelines = ("ZImagePipeline",)
    masks_text = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens = 512

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        # text has positions 1, 2, ... up to a multiple of 32; the image gets the next one
        held = pipe.transformer.config.axes_lens[0] - 2
        self.most_text = held - held % SEQ_MULTI_OF  # type: ignore[misc]
        super().__init__(pipe, *size, **more)

    @property
    def side(self) -> int:
        return 1024

    @property
    def places(self) -> int:
        places: int = min(self.pipe.transformer.config.axes_lens[1:])
        return places

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        rows, _ = self.pipe.encode_prompt(
            list(prompts), do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return padded(rows)

    def readers(self) -> list[Reader]:
        return [self._longest("Qwen3", self.pipe.tokenizer, form=chat(self.pipe.tokenizer, enable_thinking=True))]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        long = lengths(condition).tolist()
        words = [row[:length] for row, length in zip(condition["words"], long, strict=True)]
        v = network(list(x.unsqueeze(2)), 1 - t, words, return_dict=False)[0]
        return -torch.stack(list(v)).squeeze(2)

    def guided_by(self, scale: float) -> dict[str, Any]:
        return {"guidance_scale": scale - 1}

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        return super().reference(list(prompts), x, steps, guidance, **more)
