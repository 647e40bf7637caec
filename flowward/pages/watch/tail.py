"""The lines that were added to a growing file, without reading the rest again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...training.lines import readable


@dataclass
class Tail:
    """Reads metrics.jsonl from where it stopped. A line counts when it has its line break."""

    path: Path
    offset: int = 0  # bytes read so far, up to the end of a line
    modified: float = 0.0  # seconds since 1970; 0: there is no file
    _inode: int = 0

    def read(self) -> tuple[bool, list[dict[str, Any]]]:
        """The new lines; True if the file was written anew, so that they replace all earlier ones."""
        try:
            with open(self.path, "rb") as file:
                now = os.fstat(file.fileno())
                anew = self._inode not in (0, now.st_ino) or now.st_size < self.offset
                if anew:
                    self.offset = 0
                self._inode, self.modified = now.st_ino, now.st_mtime
                if now.st_size == self.offset:
                    return anew, []
                file.seek(self.offset)
                added = file.read(now.st_size - self.offset)
        except OSError:  # not there yet, or deleted
            anew, self.offset, self._inode, self.modified = self._inode != 0, 0, 0, 0.0
            return anew, []
        whole = added[: added.rfind(b"\n") + 1]
        self.offset += len(whole)
        return anew, readable(whole.decode("utf-8", "replace"))
