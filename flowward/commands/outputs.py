"""One rule for files and folders that commands write.

What you name and what exists is refused, unless you say --overwrite. Without a name, a free one is chosen: sample.png,
then sample-2.png. Devices such as /dev/null are never replaced.
"""

from __future__ import annotations

from itertools import count
from pathlib import Path


def chosen(given: Path | None, usual: Path, overwrite: bool) -> Path:
    """Where to write: the given path, or the usual one with a number if that is taken.

    Raises:
        ValueError: the given path is taken, or is a device.
    """
    if given is not None:
        refuse(given, overwrite)
        return given
    if overwrite:
        refuse(usual, overwrite)
        return usual
    names = (usual if n == 1 else usual.with_name(f"{usual.stem}-{n}{usual.suffix}") for n in count(1))
    return next(path for path in names if not _taken(path))


def refuse(path: Path, overwrite: bool, option: str = "--output") -> None:
    """Raises ValueError if a path is taken and may not be overwritten, or if it is a device."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise ValueError(f"{path} is a device, which is never replaced: name another {option}")
    if _taken(path) and not overwrite:
        raise ValueError(f"{path} exists: name another {option}, or say --overwrite")


def _taken(path: Path) -> bool:
    """Whether something is there; an empty folder is free."""
    return path.exists() and not (path.is_dir() and not any(path.iterdir()))
