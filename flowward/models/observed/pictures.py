"""The way from finished samples to pictures and back: what a pipeline does after its last step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import maps
from .calls import Answer, Call, makes_videos
from .maps import Map
from .observer import Observer, Refused


@dataclass
class Pictures:
    """Samples [B, *step_shape] of the scheduler, the latents of the autoencoder, and pictures."""

    map: Map  # to what the autoencoder decodes, [1, ...]
    call: Call  # of the decoder, with another first argument
    shape: tuple[int, ...]  # of samples: that of the latents, if the scheduler gets tokens
    step_shape: tuple[int, ...]
    video: bool

    def packed(self, x: Tensor) -> Tensor:
        """Samples [B, *shape] as the scheduler gets them."""
        if self.shape == self.step_shape:
            return x
        flat, index = x.flatten(1), self.map.index.flatten().to(x.device)
        return torch.zeros_like(flat).index_copy(1, index, flat).reshape(len(x), *self.step_shape)

    def unpacked(self, x: Tensor) -> Tensor:
        """The inverse of `packed`."""
        if self.shape == self.step_shape:
            return x
        return x.flatten(1)[:, self.map.index.flatten().to(x.device)].reshape(len(x), *self.shape)

    def decode(self, vae: Any, x: Tensor) -> Tensor:
        """Pictures [B, 3, H, W] or [B, F, 3, H, W] in [-1, 1] of samples [B, *shape]."""
        args, named = self.call
        z = self.map(self.packed(x))[:, 0].to(vae.dtype)
        more = [each.expand(len(x)) if isinstance(each, Tensor) and each.shape == (1,) else each for each in args[1:]]
        named = {**{key: each for key, each in named.items() if key != "generator"}, "return_dict": False}
        found: Tensor = vae.decode(z, *more, **named)[0]
        if found.ndim == 5:
            return found.transpose(1, 2) if self.video else found[:, :, 0]
        return found

    def encode(self, vae: Any, images: Tensor) -> Tensor:
        """Samples [B, *shape] of pictures in [-1, 1]."""
        if self.map.index.ndim == 5:
            images = images.transpose(1, 2) if self.video else images[:, :, None]
        found = vae.encode(images.to(vae.dtype))
        z = found.latent_dist.mode() if hasattr(found, "latent_dist") else found[0]
        return self.unpacked(self.map.back(z[:, None].to(images)))


def find(observer: Observer, step_shape: tuple[int, ...], dtype: torch.dtype, answer: Answer) -> Pictures:
    """Find what the pipeline decodes, and compare its pictures with those of the found way.

    Raises:
        Refused: it is more than a choice of numbers, each scaled and shifted, and the autoencoder.
    """
    vae = getattr(observer.pipe, "vae", None)
    if vae is None:
        raise Refused("has no autoencoder `vae` to decode its samples with")

    def seen(x: Tensor) -> Any:
        return observer(last=x, answer=answer, output="pt", stop_at_decoder=True).decoded

    device = next(observer.pipe.transformer.parameters()).device
    like = torch.zeros(1, *step_shape, device=device, dtype=dtype)
    call = seen(like)
    if call is None or not call[0]:
        raise Refused("does not decode its samples with its autoencoder")
    try:
        one = maps.found(lambda x: seen(x)[0][0], like)
    except maps.NotElementwise as error:
        raise Refused(
            "changes its samples before the autoencoder decodes them, by more than a scale and a shift"
        ) from error
    if not one.whole:
        raise Refused("does not decode all numbers of its samples")
    video = makes_videos(observer.pipe) and one.index.ndim == 5
    if len(step_shape) >= 3 and (video or len(step_shape) == 3):
        shape = step_shape
    else:
        shape = tuple(one.index.shape[1:])
        shape = shape if video or len(shape) == 3 else (shape[0], *shape[2:])
    found = Pictures(one, call, shape, step_shape, video)
    _refuse_other_pictures(observer, found, like, answer)
    return found


def _refuse_other_pictures(observer: Observer, found: Pictures, like: Tensor, answer: Answer) -> None:
    """Raise Refused if the pipeline makes other pictures of the same sample."""
    vae = observer.pipe.vae
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(6)).to(like)
    result = observer(last=x, answer=answer, output="pt").result[0]
    with torch.no_grad(), observer.cast():
        mine = found.decode(vae, found.unpacked(x))
    theirs = result if isinstance(result, Tensor) else torch.as_tensor(result)
    if mine.ndim not in (4, 5) or mine.shape[-3] != 3:
        raise Refused("does not decode its samples to pictures of three colours")
    half = torch.bfloat16 in (like.dtype, vae.dtype)
    if theirs.shape != mine.shape or _apart(theirs, mine) > (2e-2 if half else 1e-4):
        raise Refused("makes other pictures of its samples than its autoencoder does")
    wanted = observer.sized.get("height"), observer.sized.get("width")
    if None not in wanted and tuple(mine.shape[-2:]) != wanted:
        raise Refused(
            f"makes pictures of {mine.shape[-2]} x {mine.shape[-1]} where {wanted[0]} x {wanted[1]} is asked for"
        )


def _apart(theirs: Tensor, mine: Tensor) -> float:
    """The mean difference of values in [0, 1]."""
    return (theirs.to(mine.device).float() - (mine.float() / 2 + 0.5).clamp(0, 1)).abs().mean().item()
