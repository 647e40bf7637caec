"""Read image files as tensors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .image_files import refuse_missing


def picture(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Read an image file, rotated by its EXIF tag, resized and centre-cropped: float32 [3, H, W] in [0, 1].

    Args:
        size: (height, width).

    Raises:
        ValueError: the file is missing or not an image.
    """
    refuse_missing(Path(path))
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), size[::-1])
    except Exception as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255
