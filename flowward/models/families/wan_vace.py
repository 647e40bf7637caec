"""Wan VACE, from an image to video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from .video import FromImage
from .wan import Wan


class WanVACE(FromImage, Wan):
    """A second stream gets a video with a mask of what is to be made: here all but the first frame, the source.

    VACE can do more (a clip with a mask, reference images); a prompt has one picture.
    """

    pipelines = ("WanVACEPipeline",)
    needs = ("ftfy",)

    def _control(self, prompt: Any) -> dict[str, Any]:
        """The pipeline's arguments: the source and grey frames, a black mask and white ones."""
        size, rest = (self.width, self.height), self.frames - 1
        return {
            "video": [self.picture(prompt), *[Image.new("RGB", size, (128,) * 3)] * rest],
            "mask": [Image.new("L", size, 0), *[Image.new("L", size, 255)] * rest],
        }

    def beside_text(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        return {"source": torch.cat([self._read(prompt) for prompt in prompts])}

    def _read(self, prompt: Any) -> Tensor:
        """[1, C, F, H, W] of the second stream: latents of what is kept and of what is to be made, and the mask."""
        pipe, device = self.pipe, self.pipe.vae.device
        size = {"height": self.height, "width": self.width, "num_frames": self.frames}
        video, mask, pictures = pipe.preprocess_conditions(
            **self._control(prompt), **size, dtype=torch.float32, device=device
        )
        latents = pipe.prepare_video_latents(video, mask, pictures, None, device)
        return torch.cat([latents, pipe.prepare_masks(mask, pictures).to(latents.dtype)], 1)

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        v: Tensor = network(
            x,
            1000 * t,
            encoder_hidden_states=condition["words"],
            control_hidden_states=condition["source"],
            return_dict=False,
        )[0]
        return v

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        given: Any = prompt.text  # this pipeline takes no list
        return super(FromImage, self).reference(given, x, steps, guidance, **self._control(prompt), **more)
