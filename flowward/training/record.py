"""Reading a run folder without tensors: settings, metrics, and the paths of sample grids and checkpoints.

Files appear whole or not at all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import yaml

from ..system import strict_json


class Record:
    """One run on disk; folder.py adds what reads and writes its tensors."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics = path / "metrics.jsonl"

    @classmethod
    def open(cls, path: Path) -> Self:
        """The folder of an existing run.

        Raises:
            ValueError: this is not a run folder.
        """
        if not (path / "config.yaml").is_file():
            raise ValueError(f"{path} is not a run folder (it has no config.yaml)")
        return cls(path)

    def config(self) -> dict[str, Any]:
        """The settings of the run."""
        return read_yaml(self.path / "config.yaml")

    def origin(self) -> dict[str, Any]:
        """How the weights were made, for exports and model cards. A user's own algorithm may have no fields."""
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
            "lora_alpha": config.get("lora_alpha"),
            "init_lora": Path(config["init_lora"]).name if config.get("init_lora") else None,
            "init_lora_sha256": config.get("init_lora_sha256"),
            "precision": precision if precision != "auto" else None,  # older runs left it to the machine
            "seed": run["seed"],
        }
        return {name: value for name, value in found.items() if value is not None}

    def lines(self) -> list[dict[str, Any]]:
        """The metrics so far, without a last line that was cut off."""
        found = []
        for text in self.metrics.read_text("utf-8").splitlines() if self.metrics.exists() else []:
            try:
                found.append(strict_json.loads(text))
            except json.JSONDecodeError:
                break
        return found

    def samples(self) -> list[Path]:
        """Sample grids of evaluations, oldest first."""
        found = [path for path in (self.path / "samples").glob("*.png") if path.stem.isdigit()]
        return sorted(found, key=lambda path: int(path.stem))

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first."""
        return sorted((self.path / "checkpoints").glob("[0-9]*.safetensors"))

    def write_text(self, name: str, text: str) -> None:
        partial = self.path / f".{name}.partial"
        try:
            with self._writing(self.path / name):
                partial.write_text(text, "utf-8")
                os.replace(partial, self.path / name)
        finally:
            partial.unlink(missing_ok=True)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """An OSError inside gets the file name (a full disk gives none) and names the last checkpoint."""
        try:
            yield
        except OSError as error:
            safe = f"; the checkpoint {saved[-1].name} is intact" if (saved := self.checkpoints()) else ""
            raise OSError(f"cannot write {path}: {error.strerror or error}{safe}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        ValueError: it cannot be read, or is not a mapping.
    """
    try:
        found = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not contain a mapping (lines of the form key: value)")
    return found
