"""Images from files."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def refuse_broken(path: Path) -> None:
    """Raises ValueError where a file is missing, no image, or was cut short: before a run, not in it."""
    _refuse_missing(path)
    try:
        with Image.open(path) as image:
            if image.format == "PNG":  # its checksums tell, at a fraction of the time
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # a JPEG is decoded at an eighth of its size
                image.load()
    except Exception as error:  # Pillow's readers fail in many ways
        raise ValueError(f"{path} is not an image that can be read: {error}") from error


def picture(path: str | Path, size: tuple[int, int]) -> Tensor:
    """An image file, scaled and cropped to (height, width), float32 [3, H, W] in [0, 1].

    Raises:
        ValueError: there is none.
    """
    _refuse_missing(Path(path))
    try:
        with Image.open(path) as image:
            fitted = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), size[::-1])
    except Exception as error:
        raise ValueError(f"{path} is not an image that can be read: {error}") from error
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).float() / 255


def _refuse_missing(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"there is no image at {path}")


def digest(path: Path) -> str:
    """A hash of what is in a file, 64 hexadecimal digits; a file is read again only after it has changed.

    Raises:
        OSError: it cannot be read.
    """
    now = path.stat()
    return _digest(path, now.st_mtime_ns, now.st_size)


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
