"""Cache of judge answers on disk: one small JSON file each, named by a hash of everything it depends on."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from ...system import strict_json
from ...system.terminal import tell
from ...system.whole_files import write


class Answers:
    """A folder of scores. Several processes may use it at once; files are written atomically."""

    def __init__(self, folder: Path):
        """Raise ValueError if the folder cannot be created or written to."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"cannot store answers in {folder}: {error.strerror}") from error
        self.folder, self.told = folder, False

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> float | None:
        """The score for a key; None if there is none, or its file is damaged."""
        try:
            score = json.loads(self._path(key).read_text("utf-8"))["score"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return float(score) if type(score) in (int, float) and 0 <= score <= 1 else None

    def put(self, key: str, score: float, answer: object) -> None:
        """Store a score with its answer. If the disk is full, print a warning once and continue."""
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            write(path, strict_json.dumps({"score": score, "answer": answer}), shared=True)
        except OSError as error:
            if not self.told:
                tell(f"cannot store answers in {self.folder}: {error.strerror}; continuing without")
            self.told = True
