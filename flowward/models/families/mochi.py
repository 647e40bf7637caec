"""Mochi 1, text to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.pipelines.mochi.pipeline_mochi import linear_quadratic_schedule
from torch import Tensor

from ..lora import ATTENTION
from ..reading import Reader
from .video import Video, masked

THRESHOLD = 0.025  # noise that the pipeline takes away in the first half of the steps, evenly


class Mochi(Video):
    """Videos of 6 n + 1 frames; the network takes 1 - t, and returns -v; times are linear, then quadratic."""

    pipelines = ("MochiPipeline",)
    masks_text = True
    own = (480, 848, 19)
    scales = ("vae_temporal_scale_factor", "vae_spatial_scale_factor")
    targets = ATTENTION
    text_tokens = 256

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        """One at a time: an empty prompt at the end of a batch makes the pipeline read nothing of the others."""
        given = {"do_classifier_free_guidance": False, "max_sequence_length": self.text_tokens}
        rows = [self.pipe.encode_prompt([prompt], **given)[:2] for prompt in prompts]
        words, mask = (torch.cat(each) for each in zip(*rows, strict=True))
        return masked(words, mask)

    def readers(self) -> list[Reader]:
        return [self._longest("T5", self.pipe.tokenizer)]

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            encoder_hidden_states=condition["words"],
            timestep=1000 * (1 - t),
            encoder_attention_mask=condition["mask"],
            return_dict=False,
        )[0]
        return -v

    def times(self, steps: int) -> tuple[float, ...]:
        if steps == 1:
            raise ValueError(f"the times of {type(self.pipe).__name__} do not support 1 step; use at least 2")
        scheduler = self.scheduler()
        scheduler.set_timesteps(sigmas=linear_quadratic_schedule(steps, THRESHOLD))
        return tuple((1 - scheduler.sigmas.double()).tolist())
