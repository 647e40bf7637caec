"""A run folder: config.yaml, metrics.jsonl, samples/, checkpoints/, and later report.html.

Files are written atomically; metrics are appended line by line.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from PIL.Image import Image
from torch import Tensor

from .. import __version__
from ..evaluation import images
from ..system import checkpoint, locks, memory, strict_json, whole_files
from ..system.terminal import tell
from .inputs import Change, Inputs, write
from .lines import gaps, parsed, spans
from .record import GONE, INPUTS, SCORES, Record, read_yaml

__all__ = ["RunFolder", "read_yaml"]


class RunFolder(Record):
    """One run on disk, written while it goes on."""

    keeps = True  # checkpoints

    def __init__(self, path: Path):
        super().__init__(path)
        self._own: int | None = None  # inode of the locked folder, which no other one can get while it is open

    @classmethod
    def create(cls, path: Path, config: dict[str, Any], inputs: Inputs | None = None) -> RunFolder:
        """The folder of a new run. One whose run was killed before it had written its settings can be used again.

        Raises:
            ValueError: the folder is not empty, or another process has just made it.
        """
        cls.refuse(path)
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        with folder.held():
            folder._refuse_used()
            for name in ("samples", "checkpoints"):
                (path / name).mkdir(exist_ok=True)
            (path / INPUTS).unlink(missing_ok=True)
            if inputs is not None:
                write(folder, inputs, 0)
            folder.write_config(config)  # last: it makes the folder that of a run
        return folder

    @classmethod
    def refuse(cls, path: Path) -> None:
        """Raise what `create` would raise for this path, before a model is loaded.

        Raises:
            ValueError: the folder is not empty.
            OSError: it cannot be written to, or made.
        """
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is not an empty folder: use another --output")
        if path.is_dir():
            cls(path)._refuse_used()
        nearest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
        if not os.access(nearest, os.W_OK):
            raise OSError(
                f"cannot write to {nearest}: it is read-only, or you have no permission; use another --output"
            )

    def _refuse_used(self) -> None:
        if (self.path / "config.yaml").exists():
            raise ValueError(
                f"{self.path} already contains a run: use another --output, or continue with --resume {self.path}"
            )
        begun = {INPUTS, locks.LOCK, *(part.name for part in self.path.glob(".*.partial"))}
        for path in self.path.iterdir():
            empty = path.name in ("samples", "checkpoints") and path.is_dir() and not any(path.iterdir())
            if not empty and path.name not in begun:
                raise ValueError(f"{self.path} is not an empty folder: use another --output")

    @contextmanager
    def held(self, patience: float = 0.0) -> Iterator[Self]:
        """Lock the folder, so that only this process writes to it. The lock ends with the process.

        Args:
            patience: seconds to wait for another process that has the lock.

        Raises:
            ValueError: another process has the lock.
        """
        self._own = os.stat(self.path).st_ino
        with ExitStack() as stack:
            end: float | None = None
            while True:
                try:
                    stack.enter_context(locks.held(self.path))
                    break
                except BlockingIOError:
                    if not patience or (end is not None and time.monotonic() >= end):
                        raise ValueError(f"a run is still writing to {self.path}: stop it first") from None
                if end is None:
                    tell(f"a process is still writing to {self.path}: waiting up to {patience:.0f} seconds for its end")
                    end = time.monotonic() + patience
                time.sleep(0.2)
            yield self

    def _refuse_gone(self) -> None:
        """Raises OSError if the folder was deleted since the run began, even if there is a new one of its name."""
        there = os.stat(self.path).st_ino if self.path.is_dir() else None
        if there is None or there != (self._own or there):
            raise OSError(GONE.format(self.path))

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        self._refuse_gone()
        with super()._writing(path):
            yield

    def write_config(self, config: dict[str, Any]) -> None:
        self.write_text("config.yaml", dumped(config))

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
        """Replace the line of an iteration, or add it."""
        self._rewrite([*(each for each in self._kept() if each["iteration"] != line["iteration"]), line])

    def resume(
        self, iteration: int, config: dict[str, Any], inputs: Inputs, changes: Sequence[Change] = ()
    ) -> str | None:
        """Prepare the folder for a run that continues after an iteration. Returns a warning if metrics are missing."""
        self.forget_after(iteration if iteration else -1)  # a run that begins anew is evaluated again
        self.write_config(config)
        write(self, inputs, iteration, changes)
        missing = gaps(self.lines(), iteration)
        if not missing:
            return None
        which = f"iteration{'s' * (len(missing) > 1)} {spans(missing)}"
        return (
            f"{self.metrics.name} lacks the metrics of {which}: a power cut or damage to the file can cause this; the "
            "weights are not affected"
        )

    def forget_after(self, iteration: int) -> None:
        """Delete the metrics and sample grids after a checkpoint, since the resumed run writes them again.

        Also delete partial files of a killed run; those of checkpoints are large.
        """
        self._refuse_gone()
        self._rewrite([line for line in self._kept() if line["iteration"] <= iteration])
        for path in (self.path / "samples").glob("[0-9]*.*"):
            number = path.stem.partition("-")[0]
            if path.suffix in (".png", ".json") and number.isdigit() and int(number) > iteration:
                path.unlink()
        for part in (self.path, self.path / "samples", self.path / "checkpoints"):
            whole_files.clear(part)

    def _kept(self) -> list[dict[str, Any]]:
        """All lines that were not cut off or overwritten, also those that readers cannot use."""
        return parsed(self.metrics.read_text("utf-8", "replace")) if self.metrics.exists() else []

    def _rewrite(self, lines: Iterable[dict[str, Any]]) -> None:
        self.write_text("metrics.jsonl", "".join(strict_json.dumps(line) + "\n" for line in lines))

    def save_scores(self, iteration: int, text: str) -> None:
        """The scores of every image of an evaluation, as `flowward eval --json` writes them."""
        self._place("samples")
        self.write_text(f"samples/{iteration:06d}-{SCORES}.json", text)

    def save_sample(
        self, iteration: int, image: Image, what: str = "", record: Mapping[str, Any] | None = None
    ) -> None:
        """A picture of an evaluation: the sample grid, or `what`.

        `record` has the pictures of a grid one by one (evaluation/samples.py).
        """
        path = self._place("samples") / f"{iteration:06d}{'-' * bool(what)}{what}.png"
        with self._writing(path):
            images.save(image, path)
        if record:
            self.write_text(f"samples/{path.stem}.json", strict_json.dumps(record) + "\n")

    def _place(self, name: str) -> Path:
        """A folder inside, made again if it is missing.

        Raises:
            OSError: the run folder itself is gone.
        """
        self._refuse_gone()
        (self.path / name).mkdir(exist_ok=True)
        return self.path / name

    def state(
        self,
        *needed: str,
        at: int | Literal["best"] | None = None,
        shards: Mapping[str, Tensor] | None = None,
        within: str = "",
    ) -> dict[str, Any] | None:
        """The content of a checkpoint (`at` None: the newest), with all keys of `needed`; None if there is none.

        All processes of a run call this together.

        Args:
            shards: sharded tensors of this run, whose layout those of the checkpoint get: see `checkpoint.load`.
            within: read sharded tensors of other places than `within` without their content.

        Raises:
            ValueError: it is damaged or lacks a key; the message says if the previous checkpoint is intact. Or there is
                no checkpoint of this iteration.
        """
        paths = self.checkpoints()
        if not paths:
            return None
        if at is not None:
            return _holding(self._chosen(at), needed, shards, within)
        try:
            return _holding(paths[-1], needed, shards, within)
        except ValueError as error:
            if len(paths) > 1 and _is_whole(paths[-2], needed):
                raise ValueError(f"{error}; delete it to continue from {paths[-2].name}, which is intact") from error
            raise

    def _chosen(self, at: int | Literal["best"]) -> Path:
        """The checkpoint of an iteration, or the one with the best headline score."""
        iteration, saved = self.best() if at == "best" else at, self.checkpoints()
        if iteration is None:
            raise ValueError(f"{self.path} has no checkpoint of an evaluated iteration: leave out --at best")
        for path in saved:
            if int(path.stem) == iteration:
                return path
        known = ", ".join(str(int(path.stem)) for path in saved)
        raise ValueError(f"{self.path} has no checkpoint of iteration {iteration}; it has {known} (see train --keep)")

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Inside, the newest checkpoint is used; what is wrong with its content becomes one sentence.

        Raises:
            ValueError: it lacks something, or has something of another kind or shape.
        """
        try:
            yield
        except memory.OutOfMemory:
            raise
        except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise ValueError(
                f"{self.checkpoints()[-1]} is damaged: its state does not fit this run ({what})"
            ) from error

    def ready(self) -> None:
        """Prepare for the next checkpoint: the metrics so far are on the disk before it.

        Raises:
            OSError: they cannot be written, or the folder is gone.
        """
        whole_files.clear(self._place("checkpoints"))
        if self.metrics.exists():
            with self._writing(self.metrics):
                whole_files.flush(self.metrics)

    def thin(self, newest: Path, keep: int) -> None:
        """Delete all checkpoints but the last `keep` ones and the best one."""
        for twin in self.checkpoints():  # a folder in the place of a file, or the other way round
            if twin.stem == newest.stem and twin != newest:
                whole_files.remove(twin)
        best = self.best()
        for old in self.checkpoints()[:-keep]:
            if int(old.stem) != best:
                whole_files.remove(old)

    def save(self, iteration: int, state: dict[str, Any], keep: int = 2) -> Path:
        """Write a checkpoint now; see `ready`, `thin` and saving.py."""
        self.ready()
        path = place(self.path, iteration, state)
        with self.checkpointing():
            checkpoint.save(path, state)
        self.thin(path, keep)
        return path


def place(run: Path, iteration: int, state: Mapping[str, Any]) -> Path:
    """Where a checkpoint with this state lies."""
    return run / "checkpoints" / f"{iteration:06d}{checkpoint.suffix(state)}"


def dumped(config: dict[str, Any]) -> str:
    """The text of a config.yaml."""
    return yaml.safe_dump(config, sort_keys=False, allow_unicode=True)


def _holding(path: Path, needed: Iterable[str], shards: Mapping[str, Tensor] | None, within: str) -> dict[str, Any]:
    """Raises ValueError if a checkpoint cannot be read or lacks a needed key."""
    read: Callable[[str], bool] = lambda name: name.startswith(within)  # noqa: E731
    state = checkpoint.load(path, shards, read)
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"{path} cannot be resumed: it contains no {', '.join(missing)}")
    return state


def _is_whole(path: Path, needed: Iterable[str]) -> bool:
    try:
        found = checkpoint.contents(path)
    except ValueError:
        return False
    return all(name in found for name in needed)
