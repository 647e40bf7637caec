"""JPEG size of an image: rewards without weights, for any model (Black et al., 2023, arXiv:2305.13301)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

QUALITY = 95


def kilobytes(images: Tensor) -> Tensor:
    """Size of each image [B, 3, H, W] as a JPEG of quality 95, in kB (1000 bytes)."""
    pixels = (images.float().clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    sizes = []
    for array in pixels:
        with io.BytesIO() as file:
            Image.fromarray(array).save(file, "JPEG", quality=QUALITY)
            sizes.append(file.tell() / 1000)
    return torch.tensor(sizes)


class Compressible:
    """Minus the JPEG size in kB: favours smooth images. Range (-inf, 0); photographs at 512 px score about -100."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return -kilobytes(images)


class Incompressible:
    """The JPEG size in kB: favours detailed images. Range (0, inf)."""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return kilobytes(images)
