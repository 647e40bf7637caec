"""Wan 2.1 and 2.2, text to video."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from diffusers.loaders import PeftAdapterMixin
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from ...system import distributed
from ..reading import Reader
from .family import Family, statistics


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


class Wan(Family):
    """Videos of 4 n + 1 frames; latents are 4 times shorter and 8 (2.2-5B: 16) times smaller."""

    pipelines = ("WanPipeline",)
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens = 512
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"

    def __init__(self, pipe: Any, height: int | None = None, width: int | None = None, frames: int = 81, **more: Any):
        super().__init__(pipe, 480 if height is None else height, 832 if width is None else width, frames, **more)
        boundary = pipe.config.get("boundary_ratio")
        self._boundary = boundary
        self._network = self.joined(self.transformers)
        if frames < 1 or (frames - 1) % pipe.vae_scale_factor_temporal:
            raise ValueError(
                f"the number of frames must be 1 plus a multiple of {pipe.vae_scale_factor_temporal}, not {frames}"
            )
        most = 1 + (self.places - 1) * pipe.vae_scale_factor_temporal
        if frames > most:
            raise ValueError(f"{type(pipe).__name__} makes videos of at most {most} frames, not {frames}")

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
    def multiple(self) -> int:
        multiple: int = self.pipe.vae_scale_factor_spatial * self.pipe.transformer.config.patch_size[1]
        return multiple

    @property
    def shape(self) -> tuple[int, ...]:
        scale = self.pipe.vae_scale_factor_spatial
        length = (self.frames - 1) // self.pipe.vae_scale_factor_temporal + 1
        return (self.pipe.transformer.config.in_channels, length, self.height // scale, self.width // scale)

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
        if self.pipe.config.expand_timesteps:  # 2.2-5B: one time per token
            many = x.shape[2] * (x.shape[3] // 2) * (x.shape[4] // 2)
            timestep = timestep[:, None].expand(-1, many)
        v: Tensor = network(x, timestep, encoder_hidden_states=condition["words"], return_dict=False)[0]
        return v

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), "num_frames": self.frames}

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, x0)
        video: Tensor = self.pipe.vae.decode(x0 * std + mean).sample  # [B, 3, F, H, W]
        return video.transpose(1, 2)

    def encode_images(self, images: Tensor) -> Tensor:
        mean, std = statistics(self.pipe.vae, images)
        z: Tensor = self.pipe.vae.encode(images.transpose(1, 2)).latent_dist.mean
        return (z - mean) / std
