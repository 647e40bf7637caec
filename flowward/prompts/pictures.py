"""Read, check and hash image files."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def refuse_broken(path: Path) -> None:
    """Raise ValueError if a file is missing, not an image, or truncated; called before a run starts."""
    _refuse_missing(path)
    try:
        with Image.open(path) as image:
            if image.format == "PNG":  # check its checksums, which is much faster than decoding
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # decode a JPEG at an eighth of its size
                image.load()
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path} is not an image that can be read: {error}") from error


def picture(path: str | Path, size: tuple[int, int]) -> Tensor:
    """Read an image file, rotated by its EXIF tag, resized and centre-cropped: float32 [3, H, W] in [0, 1].

    Args:
        size: (height, width).

    Raises:
        ValueError: the file is missing or not an image.
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
    """SHA-256 of a file's content, 64 hexadecimal digits; a file is read again only after it has changed.

    Raises:
        OSError: the file cannot be read.
    """
    now = path.stat()
    return _digest(path, now.st_mtime_ns, now.st_size)


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
