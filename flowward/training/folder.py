"""A run folder: config.yaml, metrics.jsonl, samples/, checkpoints/, and later report.html.

Files are written atomically; metrics are appended line by line.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from PIL.Image import Image

from .. import __version__
from ..evaluation import images
from ..system import checkpoint, strict_json
from .record import Record, read_yaml

__all__ = ["RunFolder", "read_yaml"]

KEPT = 2  # number of checkpoints to keep


class RunFolder(Record):
    """One run on disk, written while it goes on."""

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """The folder of a new run.

        Raises:
            ValueError: the folder is not empty.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if (path / "config.yaml").exists():
                raise ValueError(
                    f"{path} already contains a run: use another --output, or continue with --resume {path}"
                )
            raise ValueError(f"{path} is not an empty folder: use another --output")
        folder = cls(path)
        (path / "samples").mkdir(parents=True)
        (path / "checkpoints").mkdir()
        folder.write_config(config)
        return folder

    @contextmanager
    def held(self) -> Iterator[None]:
        """Lock the folder, so that only this process writes to it. The lock ends with the process.

        Raises:
            ValueError: another process has the lock.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        lock = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # some file systems have no locks
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(f"a run is still writing to {self.path}: stop it first") from None
            yield
        finally:
            os.close(lock)

    def write_config(self, config: dict[str, Any]) -> None:
        self.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def write_summary(self, command: str, finished: bool) -> None:
        """Facts for the report: command, state, machine and version."""
        lines = self.lines()
        summary = {
            "command": command,
            "finished": finished,
            "iterations": lines[-1]["iteration"] if lines else 0,
            "machine": f"{os.cpu_count()} CPU cores, {platform.system()} {platform.machine()}, "
            f"Python {platform.python_version()}",
            "version": __version__,
        }
        self.write_text("summary.json", strict_json.dumps(summary, 2) + "\n")

    def append(self, line: dict[str, Any]) -> None:
        """One line of metrics."""
        with self._writing(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(strict_json.dumps(line) + "\n")

    def amend(self, line: dict[str, Any]) -> None:
        """Replace the last line."""
        self._rewrite([*self.lines()[:-1], line])

    def forget_after(self, iteration: int) -> None:
        """Delete the metrics and sample grids after a checkpoint, since the resumed run writes them again.

        Also delete partial files of a killed run; those of checkpoints are large.
        """
        self._rewrite([line for line in self.lines() if line["iteration"] <= iteration])
        for path in self.samples():
            if int(path.stem) > iteration:
                path.unlink()
        for path in self.path.rglob("*.partial"):
            path.unlink()

    def _rewrite(self, lines: Iterable[dict[str, Any]]) -> None:
        self.write_text("metrics.jsonl", "".join(strict_json.dumps(line) + "\n" for line in lines))

    def save_sample(self, iteration: int, image: Image) -> None:
        path = self.path / "samples" / f"{iteration:06d}.png"
        with self._writing(path):
            images.save(image, path)

    def state(self, *needed: str) -> dict[str, Any] | None:
        """The content of the newest checkpoint, with all keys of `needed`; None if there is no checkpoint.

        Raises:
            ValueError: it is damaged or lacks a key; the message says if the previous checkpoint is intact.
        """
        paths = self.checkpoints()
        if not paths:
            return None
        try:
            return _holding(paths[-1], needed)
        except ValueError as error:
            if len(paths) > 1 and _is_whole(paths[-2], needed):
                raise ValueError(f"{error}; delete it to continue from {paths[-2].name}, which is intact") from error
            raise

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then delete old ones."""
        path = self.path / "checkpoints" / f"{iteration:06d}.safetensors"
        checkpoint.save(path, state)
        for old in self.checkpoints()[:-KEPT]:
            old.unlink()
        return path


def _holding(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    """Raises ValueError if a checkpoint cannot be read or lacks a needed key."""
    state = checkpoint.load(path)
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"{path} cannot be resumed: it contains no {', '.join(missing)}")
    return state


def _is_whole(path: Path, needed: Iterable[str]) -> bool:
    try:
        _holding(path, needed)
    except ValueError:
        return False
    return True
