"""Read image files as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .image_files import refuse_missing
from .pixels import rgb

READING = "over white"
"""how files become pixels; it changes when the same file gives other pixels, and is a part of cache keys"""


def picture(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Read an image file as a viewer shows it (see pixels.py), resized and centre-cropped: float32 [3, H, W] in [0, 1].

    Args:
        size: (height, width).

    Raises:
        ValueError: the file is missing, not an image, or see `pixels.refuse_unclear`.
    """
    refuse_missing(Path(path))
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(rgb(image), size[::-1])
    except Exception as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def collage(paths: Sequence[Path], size: tuple[int, int]) -> Tensor:
    """Images for one look: one image as in `picture`, several as tiles on white, row by row: [3, H, W] in [0, 1].

    Args:
        size: (height, width).

    Raises:
        ValueError: see `picture`.
    """
    found = torch.ones(3, *size)
    side = ceil(len(paths) ** 0.5)
    for number, path in enumerate(paths):
        height, width = (max(1, each // side) for each in size)
        row, column = number // side * height, number % side * width
        found[:, row : row + height, column : column + width] = picture(path, (height, width))
    return found
