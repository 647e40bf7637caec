"""HunyuanVideo 1.5, image to video."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .hunyuan_video15 import HunyuanVideo15
from .video import FromImage


class HunyuanVideo15ImageToVideo(FromImage, HunyuanVideo15):
    """The source's latents come beside those of the first frame, with a mask; SigLIP sees it too.

    The pipeline chooses a size from the shape of the source. Here sources are resized and cropped to the video's size.
    """

    pipelines = ("HunyuanVideo15ImageToVideoPipeline",)

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        if pipe.transformer.config.use_meanflow:
            raise ValueError(f"the network of this {type(pipe).__name__} is step-distilled: it has a second time")

    def beside_text(self, prompts: list[Any]) -> dict[str, Tensor]:
        pipe = self.pipe
        images = [
            pipe.encode_image(self.picture(prompt), 1, pipe.vae.device, pipe.image_encoder.dtype) for prompt in prompts
        ]
        return {**super().beside_text(prompts), "image": torch.cat(images)}

    def beside(self, x: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        source = condition["source"]
        first = torch.cat([source, torch.ones_like(source[:, :1])], 1)
        return functional.pad(first, (0, 0, 0, 0, 0, x.shape[2] - 1)), condition["image"]

    def sized_by(self) -> dict[str, Any]:
        return {"num_frames": self.frames}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        processor = self.pipe.video_processor
        processor.calculate_default_height_width = lambda **given: (self.height, self.width)
        try:
            return super().reference(prompts, x, steps, guidance, **more)
        finally:
            del processor.calculate_default_height_width
