"""Wan 2.1 and 2.2, text to video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ...system import distributed
from ..reading import Reader
from .video import Video


class Experts(torch.nn.Module, PeftAdapterMixin):
    """Two transformers as one module: one for times at or above a boundary, one for times below (Wan 2.2-A14B).

    If they are split among processes, one that a single process needs is used by all.
    """

    def __init__(self, high: Any, low: Any, boundary: float):
        super().__init__()
        self.transformer, self.transformer_2, self.boundary = high, low, boundary
        self._wanted = distributed.any_of if isinstance(high, FSDPModule) else bool

    def forward(self, x: Tensor, timestep: Tensor, **more: Any) -> tuple[Tensor]:
        """Route rows to the two transformers: x [B, ...], timestep [B] in [0, 1000], other tensors with B rows."""
        early, found = timestep >= 1000 * self.boundary, torch.empty_like(x)
        for rows, expert in ((early, self.transformer), (~early, self.transformer_2)):
            here = bool(rows.any())
            if not self._wanted(here):
                continue
            asked = rows if here else torch.arange(1, device=x.device)
            own = {name: value[asked] if isinstance(value, Tensor) else value for name, value in more.items()}
            v = expert(x[asked], timestep[asked], **own)[0]
            found = found.to(v.dtype)
            found = found.index_put((rows.nonzero().flatten(),), v) if here else found + 0 * v.sum()
        return (found,)


class Wan(Video):
    """Videos of 4 n + 1 frames; latents are 4 times shorter and 8 (2.2-5B: 16) times smaller."""

    pipelines = ("WanPipeline",)
    text_tokens = 512

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        self._boundary = pipe.config.get("boundary_ratio")
        self._network = self.joined(self.transformers)

    @property
    def transformers(self) -> dict[str, Any]:
        return {name: part for name in ("transformer", "transformer_2") if (part := getattr(self.pipe, name, None))}

    @property
    def network(self) -> Any:
        return self._network

    def joined(self, transformers: Mapping[str, Any]) -> Any:
        if self._boundary is None:
            return transformers["transformer"]
        return Experts(transformers["transformer"], transformers["transformer_2"], self._boundary)

    def load_lora(self, folder: Path) -> None:
        super().load_lora(folder)
        if self._boundary is not None:
            self.pipe.load_lora_weights(folder / "transformer_2", load_into_transformer_2=True)

    @property
    def places(self) -> int:
        places: int = self.pipe.transformer.config.rope_max_seq_len
        return places

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        words, _ = self.pipe.encode_prompt(
            prompts, do_classifier_free_guidance=False, max_sequence_length=self.text_tokens
        )
        return {"words": words}

    def readers(self) -> list[Reader]:
        return [self._longest("UMT5", self.pipe.tokenizer, form=prompt_clean)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        timestep = 1000 * t
        if self.pipe.config.get("expand_timesteps"):  # 2.2-5B: one time per token
            many = x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
            timestep = timestep[:, None].expand(-1, many)
        v: Tensor = network(x, timestep, encoder_hidden_states=condition["words"], return_dict=False)[0]
        return v
