"""What images look like, whatever the prompt: numbers to watch, since rewards move them without saying so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..reward import subjects

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)


def _brightness(images: Tensor) -> Tensor:
    """[B, 3, H, W] -> [B, H, W]."""
    return torch.einsum("bchw,c->bhw", images.float().clamp(0, 1), torch.tensor(LUMA, device=images.device))


class Brightness:
    """Mean brightness of an image, from 0 (black) to 1 (white)."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return _brightness(images).mean((1, 2)).cpu()


class Contrast:
    """Standard deviation of the brightness of an image, from 0 (one tone) to 0.5 (half black, half white)."""

    bounds: ClassVar[tuple[float, float]] = (0.0, 0.5)

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return _brightness(images).flatten(1).std(1, correction=0).cpu()


class Colourfulness:
    """How colourful an image is: 0 is grey, 0.4 and more is extremely colourful (Hasler and Suesstrunk, 2003).

    Their number is for colours from 0 to 255; this one is it over 255: sigma + 0.3 mu of R - G and (R + G) / 2 - B,
    where sigma and mu are the lengths of the two standard deviations and of the two means.
    """

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        red, green, blue = images.float().clamp(0, 1).unbind(1)
        opponent = torch.stack([red - green, (red + green) / 2 - blue], 1).flatten(2)
        found: Tensor = opponent.std(2, correction=0).norm(dim=1) + 0.3 * opponent.mean(2).norm(dim=1)
        return found.cpu()


class Variety:
    """How much the images of a prompt differ: root mean square distance of pixels to the other images, averaged.

    From 0 (all alike) to 1. The only image of a prompt scores 0. It sees pixels, where `diversity` sees content, and
    needs no weights. Only images of one call are compared: score all images of a prompt at once, several per prompt.
    """

    bounds: ClassVar[tuple[float, float]] = (0.0, 1.0)
    takes_videos: ClassVar[bool] = True
    compares: ClassVar[bool] = True

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        groups, flat = subjects(prompts, metadata), images.float().clamp(0, 1).flatten(1).cpu()
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        found = torch.zeros(len(flat))
        for own in rows.values():
            if len(own) > 1:
                apart = torch.cdist(flat[own], flat[own], compute_mode="donot_use_mm_for_euclid_dist")
                found[own] = apart.sum(1) / (len(own) - 1) / flat.shape[1] ** 0.5
        return found
