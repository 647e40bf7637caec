"""CogView4."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.models.transformers.transformer_cogview4 import CogView4TrainingAttnProcessor
from torch import Tensor

from ..reading import Reader
from .family import Family, padded


class CogView4(Family):
    """GLM reads the prompt; the network gets whole times from before the shift, 1000 to 1, and the size of the image.

    The pipeline pads the prompts of a batch to the same length, without a mask, so an image depends on its batch. Here
    each prompt is as in a batch of its own.
    """

    pipelines = ("CogView4Pipeline",)
    masks_text = True
    cuts_patches = True
    targets = ("to_q", "to_k", "to_v", "to_out.0")
    text_tokens = 1024

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        for block in pipe.transformer.transformer_blocks:  # the usual processor adds its mask to the scores, as 0 or 1
            block.attn1.processor = CogView4TrainingAttnProcessor()

    @property
    def side(self) -> int:
        side: int = self.pipe.transformer.config.sample_size * self.pipe.vae_scale_factor
        return side

    def encode(self, prompts: list[str]) -> dict[str, Tensor]:
        given = {"do_classifier_free_guidance": False, "max_sequence_length": self.text_tokens}
        rows = [self.pipe.encode_prompt([prompt], **given)[0][0] for prompt in prompts]
        return padded(rows)

    def readers(self) -> list[Reader]:
        return [self._longest("GLM", self.pipe.tokenizer)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        size = x.new_tensor([[self.height, self.width]]).expand(len(x), 2)
        v: Tensor = network(
            x,
            encoder_hidden_states=condition["words"],
            timestep=1000 * t / (t + self.shift * (1 - t)),
            original_size=size,
            target_size=size,
            crop_coords=torch.zeros_like(size),
            attention_kwargs={"text_attn_mask": condition["mask"].to(torch.int32)},
            return_dict=False,
        )[0]
        return v

    @property
    def shift(self) -> float:
        """s in t = s u / (1 + (s - 1) u), where u is the time before the shift."""
        known = self.scheduler().config
        if not known.get("use_dynamic_shifting"):
            return float(known.shift)
        return self.mu(0) if known.get("time_shift_type") == "linear" else math.exp(self.mu(0))

    def mu(self, steps: int) -> float:
        """Linear in the side of the image."""
        known = self.pipe.scheduler.config
        ratio = math.sqrt(self.tokens / known.get("base_image_seq_len", 256))
        mu: float = known.get("base_shift", 0.25) + known.get("max_shift", 0.75) * ratio
        return mu

    def times(self, steps: int) -> tuple[float, ...]:
        scheduler, shift = self.scheduler(), self.shift
        u = (
            np.linspace(scheduler.config.num_train_timesteps, 1, steps).astype(int)
            / scheduler.config.num_train_timesteps
        )
        return (*(shift * u / (1 + (shift - 1) * u)).tolist(), 0.0)

    def reference(self, prompts: list[str], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """One prompt at a time."""
        each = [([prompt], x[row : row + 1]) for row, prompt in enumerate(prompts)]
        return torch.cat(
            [super(CogView4, self).reference(text, start, steps, guidance, **more) for text, start in each]
        )
