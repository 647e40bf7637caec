"""A run folder: config.yaml, metrics.jsonl, samples/, checkpoints/, and later report.html.

Files appear whole or not at all; metrics are appended line by line.
"""

from __future__ import annotations

import json
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

KEPT = 2  # checkpoints


class RunFolder:
    """One run on disk."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def create(cls, path: Path, config: dict[str, Any]) -> RunFolder:
        """A new run.

        Raises:
            ValueError: the folder holds something already.
        """
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            if (path / "config.yaml").exists():
                raise ValueError(f"{path} already holds a run; name another --output, or go on with --resume {path}")
            raise ValueError(f"{path} is not an empty folder; name another --output")
        folder = cls(path)
        (path / "samples").mkdir(parents=True)
        (path / "checkpoints").mkdir()
        folder.write_config(config)
        return folder

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """An existing run.

        Raises:
            ValueError: there is none.
        """
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is not a run folder (it has no config.yaml)")
        return cls(path)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, this process alone writes here. It ends with the process, however that ends.

        Raises:
            ValueError: another one does.
        """
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        lock = os.open(self.path, os.O_RDONLY)
        try:
            with suppress(OSError):  # of file systems that have no locks
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    raise ValueError(f"{self.path} belongs to a run that is still going: stop it first") from None
            yield
        finally:
            os.close(lock)

    def config(self) -> dict[str, Any]:
        """What the run was started with."""
        return read_yaml(self.path / "config.yaml")

    def origin(self) -> dict[str, Any]:
        """How its weights come to be, for those who meet them later; an algorithm of one's own may have no fields."""
        config, lines = self.config(), self.lines()
        algorithm, run, loading = config.get("algorithm"), config["run"], config.get("loading") or {}
        rollout = algorithm.get("rollout", {}) if isinstance(algorithm, dict) else {}
        precision = config.get("precision")
        found = {
            "base_model": config["model"],
            **{
                name: loading.get(name) for name in ("revision", "variant", "size", "frames", "text_tokens", "quantise")
            },
            "algorithm": algorithm["name"] if isinstance(algorithm, dict) else algorithm,
            "reward": config.get("reward"),
            "guidance": rollout.get("guidance"),
            "steps": rollout.get("steps"),
            "iterations": lines[-1]["iteration"] if lines else 0,
            "images_per_iteration": run["images_per_update"] * run["updates_per_iteration"],
            "lora_rank": config.get("lora_rank"),
            "precision": precision if precision != "auto" else None,  # older runs left it to the machine
            "seed": run["seed"],
        }
        return {name: value for name, value in found.items() if value is not None}

    def write_config(self, config: dict[str, Any]) -> None:
        self.write_text("config.yaml", yaml.safe_dump(config, sort_keys=False))

    def write_summary(self, command: str, finished: bool) -> None:
        """What the report says of the run as a whole."""
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

    def write_text(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        try:
            with self._writing(self.path / name):
                partial.write_text(text, "utf-8")
                os.replace(partial, self.path / name)
        finally:
            partial.unlink(missing_ok=True)

    def append(self, line: dict[str, Any]) -> None:
        """One line of metrics."""
        with self._writing(self.metrics), open(self.metrics, "a", encoding="utf-8") as file:
            file.write(strict_json.dumps(line) + "\n")

    def amend(self, line: dict[str, Any]) -> None:
        """Another line in the place of the last one."""
        self._rewrite([*self.lines()[:-1], line])

    def lines(self) -> list[dict[str, Any]]:
        """The metrics so far; a last line that was cut short is left out."""
        found = []
        for text in self.metrics.read_text("utf-8").splitlines() if self.metrics.exists() else []:
            try:
                found.append(strict_json.loads(text))
            except json.JSONDecodeError:
                break
        return found

    def forget_after(self, iteration: int) -> None:
        """Drop the metrics and pictures that came after a checkpoint: the resumed run makes them again, or others.

        So go files that a kill left half written: those of checkpoints are large.
        """
        self._rewrite([line for line in self.lines() if line["iteration"] <= iteration])
        for path in self.samples():
            if int(path.stem) > iteration:
                path.unlink()
        for path in self.path.rglob("*.partial"):
            path.unlink()

    def _rewrite(self, lines: Iterable[dict[str, Any]]) -> None:
        self.write_text("metrics.jsonl", "".join(strict_json.dumps(line) + "\n" for line in lines))

    def samples(self) -> list[Path]:
        """Pictures of evaluations, oldest first."""
        found = [path for path in (self.path / "samples").glob("*.png") if path.stem.isdigit()]
        return sorted(found, key=lambda path: int(path.stem))

    def save_sample(self, iteration: int, image: Image) -> None:
        path = self.path / "samples" / f"{iteration:06d}.png"
        with self._writing(path):
            images.save(image, path)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """An OSError inside names the file (that of a full disk does not), and says what is safe."""
        try:
            yield
        except OSError as error:
            safe = f"; the checkpoint {saved[-1].name} is safe" if (saved := self.checkpoints()) else ""
            raise OSError(f"cannot write {path}: {error.strerror or error}{safe}") from error

    def checkpoints(self) -> list[Path]:
        """Oldest first."""
        return sorted((self.path / "checkpoints").glob("[0-9]*.safetensors"))

    def state(self, *needed: str) -> dict[str, Any] | None:
        """What the newest checkpoint holds, with all of `needed` in it; None where there is no checkpoint.

        Raises:
            ValueError: it is damaged, or lacks something; where the one before it is whole, the sentence says so.
        """
        paths = self.checkpoints()
        if not paths:
            return None
        try:
            return _holding(paths[-1], needed)
        except ValueError as error:
            if len(paths) > 1 and _is_whole(paths[-2], needed):
                raise ValueError(f"{error}; remove it to go on from {paths[-2].name}, which is whole") from error
            raise

    def save(self, iteration: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove those that are no longer needed."""
        path = self.path / "checkpoints" / f"{iteration:06d}.safetensors"
        checkpoint.save(path, state)
        for old in self.checkpoints()[:-KEPT]:
            old.unlink()
        return path


def _holding(path: Path, needed: Iterable[str]) -> dict[str, Any]:
    """Raises ValueError where a checkpoint cannot be read, or does not hold what is needed of it."""
    state = checkpoint.load(path)
    if missing := [name for name in needed if name not in state]:
        raise ValueError(f"{path} is no checkpoint to go on from: it holds no {', '.join(missing)}")
    return state


def _is_whole(path: Path, needed: Iterable[str]) -> bool:
    try:
        _holding(path, needed)
    except ValueError:
        return False
    return True


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        ValueError: it cannot be read, or is something else.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not hold a mapping")
    return found
