"""What families of video models have in common: the number of frames, normalised latents, and a given first frame."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from ...prompts import sources_of, text_of
from ...prompts.pictures import picture
from .family import Family


class Video(Family):
    """Samples are [C, F, H, W]: the autoencoder makes F and the sides shorter, but keeps the first frame by itself."""

    targets: ClassVar[tuple[str, ...]] = ("to_q", "to_k", "to_v", "to_out.0")
    sigmas: ClassVar[Literal["scheduler", "even"]] = "scheduler"
    own: ClassVar[tuple[int, int, int]] = (480, 832, 81)
    """height, width and number of frames of the pipeline's default video"""
    scales: ClassVar[tuple[str, str]] = ("vae_scale_factor_temporal", "vae_scale_factor_spatial")
    """the pipeline's names of how many times latents are shorter and smaller"""
    count: ClassVar[str] = "num_frames"
    """the pipeline's argument for the number of frames"""

    def __init__(
        self, pipe: Any, height: int | None = None, width: int | None = None, frames: int | None = None, **more: Any
    ):
        size = (own if each is None else each for own, each in zip(self.own, (height, width, frames), strict=True))
        super().__init__(pipe, *size, **more)
        if self.frames < 1 or (self.frames - 1) % self.shorter:
            raise ValueError(f"the number of frames must be 1 plus a multiple of {self.shorter}, not {self.frames}")
        if self.moments and self.frames > (most := 1 + (self.moments - 1) * self.shorter):
            raise ValueError(f"{type(pipe).__name__} makes videos of at most {most} frames, not {self.frames}")

    @property
    def shorter(self) -> int:
        """Frames per latent frame."""
        shorter: int = getattr(self.pipe, self.scales[0])
        return shorter

    @property
    def smaller(self) -> int:
        """Side of a latent pixel, in pixels."""
        smaller: int = getattr(self.pipe, self.scales[1])
        return smaller

    @property
    def patch(self) -> int:
        found: int | tuple[int, ...] = self.pipe.transformer.config.patch_size
        return found if isinstance(found, int) else found[-1]

    @property
    def multiple(self) -> int:
        return self.smaller * self.patch

    @property
    def moments(self) -> int | None:
        """Maximum number of latent frames (position embeddings); None: no limit."""
        return self.places

    @property
    def channels(self) -> int:
        """Channels of a sample."""
        channels: int = self.pipe.transformer.config.in_channels
        return channels

    @property
    def shape(self) -> tuple[int, ...]:
        length = (self.frames - 1) // self.shorter + 1
        return (self.channels, length, self.height // self.smaller, self.width // self.smaller)

    def sized_by(self) -> dict[str, Any]:
        return {**super().sized_by(), self.count: self.frames}

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's latents, that broadcast over x [B, C, F, H, W]."""
        vae, known = self.pipe.vae, self.pipe.vae.config
        numbers = {**known, **dict(vae.named_buffers(recurse=False))}  # LTX has tensors
        mean, std = numbers.get("latents_mean"), numbers.get("latents_std")
        if mean is None or std is None:
            return x.new_zeros(1), x.new_full((1,), 1 / known.get("scaling_factor", 1))
        mean, std = (torch.as_tensor(each).view(1, -1, 1, 1, 1).to(x) for each in (mean, std))
        return mean, std / known.get("scaling_factor", 1)

    def decode(self, x0: Tensor) -> Tensor:
        mean, std = self.statistics(x0)
        video: Tensor = self.pipe.vae.decode(x0 * std + mean).sample  # [B, 3, F, H, W]
        return video.transpose(1, 2)

    def encode_images(self, images: Tensor) -> Tensor:
        mean, std = self.statistics(images)
        z: Tensor = self.pipe.vae.encode(images.transpose(1, 2)).latent_dist.mean
        return (z - mean) / std


class FromImage(Video):
    """Prompts are Edits whose source is the first frame; `source` in a condition is a video's latents, or its first's.

    The pipelines put one picture before all prompts of a call, so the reference is made one prompt at a time.
    """

    sources = range(1, 2)
    inputs = "image=image, prompt=prompt"

    def pictures(self, prompts: Sequence[Any]) -> Tensor:
        """The sources, resized and centre-cropped to the size of the video: [N, 3, H, W] in [0, 1]."""
        return torch.stack([picture(sources_of(prompt)[0], (self.height, self.width)) for prompt in prompts])

    def picture(self, prompt: Any) -> Any:
        """The source of an Edit for Pillow, in the size of the video."""
        return self.pipe.video_processor.numpy_to_pil(self.pictures([prompt]).permute(0, 2, 3, 1).numpy())[0]

    def first_frames(self, prompts: Sequence[Any]) -> Tensor:
        """The sources as videos of one frame: latents [N, C, 1, h, w]."""
        vae = self.pipe.vae
        images = (2 * self.pictures(prompts) - 1).to(vae.device, vae.dtype)
        return torch.cat([self.encode_images(image[:, None]) for image in images.split(1)])

    def encode(self, prompts: list[Any]) -> dict[str, Tensor]:
        """The empty prompt has no source."""
        words: dict[str, Tensor] = cast(Any, super()).encode(list(map(text_of, prompts)))
        return words | (self.beside_text(prompts) if all(map(sources_of, prompts)) else {})

    def beside_text(self, prompts: list[Any]) -> dict[str, Tensor]:
        """What a condition has of the sources: `source`, and what an image encoder sees of it."""
        return {"source": self.first_frames(prompts)}

    def reference(self, prompts: list[Any], x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        each = zip(prompts, x.split(1), strict=True)
        return torch.cat([self.alone(prompt, start, steps, guidance, **more) for prompt, start in each])

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        """A finished sample by the pipeline, from noise x [1, ...]."""
        return super().reference([text_of(prompt)], x, steps, guidance, image=self.picture(prompt), **more)


class KeepsFirst(FromImage):
    """The first latent frame of a sample is the source's: the network gets it as it is, at time 0."""

    one_time: ClassVar[bool] = False
    """whether the network has a single time for all frames"""

    def velocity(self, network: Any, x: Tensor, t: Tensor, condition: Mapping[str, Tensor], guidance: float) -> Tensor:
        source, family = condition["source"], cast(Any, super())
        given = torch.cat([source, x[:, :, 1:]], 2)
        times = t if self.one_time else later(x, t, self.tokens)
        v: Tensor = family.velocity(network, given, times, condition, guidance)
        return kept(v, x, t, source)

    def alone(self, prompt: Any, x: Tensor, steps: int, guidance: float, **more: Any) -> Tensor:
        start = torch.cat([self.first_frames([prompt]).to(x), x[:, :, 1:]], 2)
        return super().alone(prompt, start, steps, guidance, **more)


@contextmanager
def most_likely(vae: Any) -> Iterator[None]:
    """Inside, latents that are drawn from the autoencoder are its most likely ones."""

    def encode(*given: Any, **more: Any) -> Any:
        found = type(vae).encode(vae, *given, **more)
        found.latent_dist.sample = lambda *_, **__: found.latent_dist.mean
        return found

    vae.encode = encode
    try:
        yield
    finally:
        del vae.encode


SMALL = 1e-6


def later(x: Tensor, t: Tensor, tokens: int) -> Tensor:
    """t [B] as a time per token [B, F tokens], which is 0 in the first latent frame of x [B, C, F, H, W]."""
    frames = torch.arange(x.shape[2], device=x.device).clamp(max=1)
    return (t[:, None] * frames).repeat_interleave(tokens, 1)


def kept(v: Tensor, x: Tensor, t: Tensor, source: Tensor) -> Tensor:
    """v [B, C, F, H, W] whose first latent frame goes straight to the source's: (x - source) / t.

    Pipelines that keep a first frame put it into every input of the network. As a flow, this is the one of a point: it
    ends there from everywhere, and it has no gradient.
    """
    rest = t.clamp(min=SMALL)[:, None, None, None, None]
    return torch.cat([(x[:, :, :1] - source) / rest.to(x.dtype), v[:, :, 1:].to(x.dtype)], 2)


def masked(words: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Words [N, L, D] with their mask [N, L], without the padding behind the longest text."""
    longest = max(1, int(mask.sum(1).max()))
    return {"words": words[:, :longest], "mask": mask[:, :longest].to(words.dtype)}
