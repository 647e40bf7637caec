"""Names that mean files: as absolute paths, since a run may be resumed from another folder; and hashes of files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

_HOME = re.compile(r"(?:^|(?<==))~(?=/|$)")  # at the start of a word, or of a value as in template=~/mine.yaml
WHOLE, PART = 64 * 2**20, 2**20  # bytes: the largest file that is hashed whole, and the parts of a larger one


def expanded(word: str) -> str:
    """A word with the home folder in the place of ~; shells do not do this inside a word, and YAML never does."""
    return _HOME.sub(lambda found: str(Path.home()), word) if "~" in word else word


def absolute(name: str) -> str:
    """The absolute path of a file or folder that exists; any other name unchanged."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if name and os.path.exists(path) else name


def absolute_code(name: str) -> str:
    """The same for the file in `path/to/file.py:function`, which may be followed by `=weight`."""
    file, colon, function = name.rpartition(":")
    return f"{absolute(file)}:{function}" if colon and file.endswith(".py") else name


def short_code(name: str) -> str:
    """`file.py:function` without the folders of the file; any other name unchanged."""
    file, colon, function = name.rpartition(":")
    return f"{Path(file).name}:{function}" if colon and file.endswith(".py") else name


def short_codes(names: Iterable[str]) -> dict[str, str]:
    """Each name with its short form, or with itself if two of them would be the same."""
    short = {name: short_code(name) for name in names}
    found = list(short.values())
    return {name: own if found.count(own) == 1 else name for name, own in short.items()}


def fingerprint(path: Path) -> str:
    """A hash of a file's content, or of the names and contents of the files in a folder: 16 hexadecimal digits.

    Of a file above 64 MB (weights), only the size, the first and the last megabyte count.

    Raises:
        OSError: it cannot be read.
    """
    found = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        found.update(f"{file.relative_to(path)} {size}\n".encode())
        with open(file, "rb") as opened:
            if size <= WHOLE:
                found.update(opened.read())
                continue
            found.update(opened.read(PART))
            opened.seek(-PART, os.SEEK_END)
            found.update(opened.read())
    return found.hexdigest()[:16]


def refuse_filled(folder: Path, instead: str = "another folder") -> None:
    """Raise ValueError if a folder to write to is not empty, or a file; the message asks for something `instead`."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} holds something already; name {instead}")
