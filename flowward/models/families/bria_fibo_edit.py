"""Bria Fibo Edit."""

from __future__ import annotations

import json
import sys
from typing import Any

import torch
from torch import Tensor

from ...prompts import prompt_of, sources_of, text_of
from .bria_fibo import BriaFibo
from .edits import Edits


class BriaFiboEdit(Edits, BriaFibo):
    """Sources are optional; the tokens of source k = 1, 2, ... have k as the first of their three position ids.

    The model reads JSON with the key `edit_instruction`; other prompts are put under this key.
    """

    pipelines = ("BriaFiboEditPipeline",)
    sources = range(5)  # the pipeline has no limit
    inputs = "prompt=prompt, image=image"

    @property
    def parts(self) -> dict[str, int]:
        return {**super().parts, "text tokens": self.text_tokens}

    def form(self, text: str) -> str:
        known = sys.modules[type(self.pipe).__module__]
        return text if not text or known.is_valid_edit_json(text) else json.dumps({"edit_instruction": text})

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        asked = [prompt_of(self.form(text_of(prompt)), sources_of(prompt)) for prompt in prompts]
        draw, each = super().reference, zip(asked, x.split(1), strict=True)
        return torch.cat([draw([prompt], start, steps, guidance, **more) for prompt, start in each])
