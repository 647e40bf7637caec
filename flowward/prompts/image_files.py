"""Check and hash image files. This needs no torch; pictures.py reads them as tensors."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from PIL import Image

from .pixels import refuse_unclear


def refuse_broken(path: Path) -> None:
    """Raise ValueError if a file is missing, not an image, truncated, or has pixels without a single meaning.

    Called before a run starts. What is refused is listed in pixels.py.
    """
    refuse_missing(path)
    try:
        with Image.open(path) as image:
            refuse_unclear(image)
            if image.format == "PNG":  # check its checksums, which is much faster than decoding
                image.verify()
            else:
                image.draft("RGB", (1, 1))  # decode a JPEG at an eighth of its size
                image.load()
    except Exception as error:  # Pillow raises many kinds
        raise ValueError(f"{path} is not an image that can be read: {error}") from error


def refuse_missing(path: Path) -> None:
    """Raise ValueError if there is no such file."""
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
