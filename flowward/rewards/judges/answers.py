"""Answers that were paid for once, on disk: one small JSON file each, under the hash of all that they depend on."""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
from pathlib import Path

from ...system import strict_json


class Answers:
    """A folder of scores. Several processes may use it at once; a file appears whole or not at all."""

    def __init__(self, folder: Path):
        """Raises ValueError where the folder cannot be made or written to."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ValueError(f"answers cannot be kept in {folder}: {error.strerror}") from error
        self.folder, self.told = folder, False

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def get(self, key: str) -> float | None:
        """The score under a key; None where there is none, or its file is damaged."""
        try:
            score = json.loads(self._path(key).read_text("utf-8"))["score"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return float(score) if type(score) in (int, float) and math.isfinite(score) else None

    def put(self, key: str, score: float, answer: object) -> None:
        """Keep a score, with the answer that it was read from; a disk that takes no more is told, and ends no run."""
        path = self._path(key)
        try:
            path.parent.mkdir(exist_ok=True)
            with tempfile.NamedTemporaryFile(
                "w", dir=path.parent, suffix=".part", delete=False, encoding="utf-8"
            ) as file:
                file.write(strict_json.dumps({"score": score, "answer": answer}))
            os.replace(file.name, path)
        except OSError as error:
            if not self.told:
                print(f"flowward: answers are not kept in {self.folder}: {error.strerror}", file=sys.stderr)
            self.told = True
