"""Wan 2.1 and 2.2, and SkyReels V2, from an image to video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .video import FromImage, kept, later
from .wan import Wan


class WanImageToVideo(FromImage, Wan):
    """The network gets the latents of a video whose frames are grey after the first, and a mask that says so.

    An image encoder adds tokens (2.1). In 2.2-5B the first latent frame is the source's itself, at time 0.
    """

    pipelines = ("WanImageToVideoPipeline",)
    needs = ("ftfy",)

    @property
    def channels(self) -> int:
        channels: int = self.pipe.vae.config.z_dim
        return channels

    @property
    def keeps(self) -> bool:
        """Whether the first latent frame is part of the sample."""
        return bool(self.pipe.config.get("expand_timesteps"))

    def beside_text(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        found = {"source": self.first_frames(prompts) if self.keeps else self._padded(prompts)}
        if self.pipe.transformer.config.image_dim is not None:
            found["image"] = torch.cat([self.pipe.encode_image(self.picture(prompt)) for prompt in prompts])
        return found

    def _padded(self, prompts: Sequence[Any]) -> Tensor:
        """Latents of videos that are grey after the first frame."""
        vae = self.pipe.vae
        images = (2 * self.pictures(prompts) - 1).to(vae.device, vae.dtype)[:, None]
        videos = functional.pad(images, (0, 0, 0, 0, 0, 0, 0, self.frames - 1))
        return torch.cat([self.encode_images(video) for video in videos.split(1)])

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        source, timestep = condition["source"], 1000 * t
        if self.keeps:
            given = torch.cat([source, x[:, :, 1:]], 2)
            timestep = later(x, timestep, self.tokens)
        else:
            mask = functional.pad(torch.ones_like(x[:, :1, :1]), (0, 0, 0, 0, 0, x.shape[2] - 1))
            mask = mask.expand(-1, self.shorter, -1, -1, -1)
            given = torch.cat([x, mask, source], 1)
        v: Tensor = network(
            given,
            timestep,
            encoder_hidden_states=condition["words"],
            encoder_hidden_states_image=condition.get("image"),
            return_dict=False,
        )[0]
        return kept(v, x, t, source) if self.keeps else v


class SkyReelsV2ImageToVideo(WanImageToVideo):
    """Wan 2.1's with other weights."""

    pipelines = ("SkyReelsV2ImageToVideoPipeline",)
    own = (544, 960, 97)


class ChronoEdit(WanImageToVideo):
    """Edits an image: the video has five frames, and the last is the result; without steps of reasoning."""

    pipelines = ("ChronoEditPipeline",)
    own = (480, 832, 5)

    def __init__(self, pipe: Any, *size: Any, **more: Any):
        super().__init__(pipe, *size, **more)
        if self.frames != 5:
            raise ValueError(f"{type(pipe).__name__} makes videos of 5 frames, not {self.frames}; leave out the option")
