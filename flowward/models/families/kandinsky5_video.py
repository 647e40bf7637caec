"""Kandinsky 5 for videos, from text or an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from .family import replaced
from .kandinsky5 import Kandinsky5
from .video import KeepsFirst, Video

NORMALISED = 4  # latent frames at the begin that the pipeline from an image scales like those behind them


class Kandinsky5Video(Kandinsky5, Video):
    """As for images; networks made for both kinds of videos also get zeros, and which frames are given.

    The classifier-free guidance is away from the pipeline's own negative prompt, as in its default.
    """

    pipelines = ("Kandinsky5T2VPipeline",)
    own = (512, 768, 121)
    nothing = (
        "Static, 2D cartoon, cartoon, 2d animation, paintings, images, worst quality, low quality, ugly, deformed, "
        "walking backwards"
    )
    given: ClassVar[int] = 0
    """latent frames of a sample that are those of the source"""
    shape, multiple = Video.shape, Video.multiple
    decode, encode_images = Video.decode, Video.encode_images

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        if (kind := pipe.transformer.config.attention_type) != "regular":
            raise ValueError(
                f"{type(pipe).__name__} with {kind} attention, which skips parts of a long video, cannot be trained; "
                "use a model with regular attention, such as kandinskylab/Kandinsky-5.0-T2V-Lite-sft-5s-Diffusers"
            )
        super().__init__(pipe, *size, **more)

    @property
    def places(self) -> int:
        places: int = min(self.pipe.transformer.visual_rope_embeddings.max_pos)
        return places

    @property
    def channels(self) -> int:
        channels: int = self.pipe.transformer.config.in_visual_dim
        return channels

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        sides = (x.shape[2], x.shape[3] // self.patch, x.shape[4] // self.patch)
        v: Tensor = network(
            self.pixels(x, condition),
            encoder_hidden_states=condition["words"],
            timestep=1000 * t,
            pooled_projections=condition["pooled"],
            visual_rope_pos=[torch.arange(many, device=x.device) for many in sides],
            text_rope_pos=torch.arange(condition["words"].shape[1], device=x.device),
            scale_factor=self.pipe._get_scale_factor(self.height, self.width),
            return_dict=False,
        )
        return v.movedim(-1, 1)

    def pixels(self, x: Tensor, condition: Mapping[str, Tensor]) -> Tensor:
        """What the network sees of samples x [B, C, F, h, w]: the channels of each pixel, [B, F, h, w, channels]."""
        rows = [x]
        if self.pipe.transformer.config.visual_cond:
            marks = torch.zeros_like(x[:, :1])
            marks[:, :, : self.given] = 1
            rows += [torch.zeros_like(x), marks]
        return torch.cat(rows, 1).movedim(1, -1).contiguous()

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """One prompt at a time; the pipeline changes the tensor that it is given."""
        draw = Video.reference
        found = [
            draw(self, [prompt], start, steps, guidance, **more, latents=self.pixels(start, {}).clone())
            for prompt, start in zip(prompts, x.split(1), strict=True)
        ]
        return torch.cat(found).movedim(-1, 1)


class Kandinsky5ImageToVideo(KeepsFirst, Kandinsky5Video):
    """The source is the first latent frame, at the time of the others.

    The pipeline draws the latents of the source at random; here they are the most likely ones. Finished samples get
    their first four latent frames scaled like the next ones before they are decoded.
    """

    pipelines = ("Kandinsky5I2VPipeline",)
    given = 1
    one_time = True

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        if self.shape[1] <= NORMALISED:
            raise ValueError(
                f"{type(pipe).__name__} makes videos of at least {1 + NORMALISED * self.shorter} frames, not "
                f"{self.frames}: it scales the first {NORMALISED} latent frames like those behind them"
            )

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """Before the first frames are scaled, which `decode` does."""
        with replaced(self.pipe, "normalize_first_frame", lambda latents: latents):
            return super().alone(prompt, x, steps, guidance, **more)

    def decode(self, x0: Tensor) -> Tensor:
        scaled = [self.pipe.normalize_first_frame(each.movedim(1, -1)) for each in x0.split(1)]
        return super().decode(torch.cat(scaled).movedim(-1, 1))
