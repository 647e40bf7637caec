"""Reading a run folder without tensors: settings, metrics, and the paths of sample grids and checkpoints.

Files appear whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from ..evaluation.outcome import of
from ..system import strict_json, strict_yaml, whole_files
from ..system.paths import short_code
from .lines import readable

PARTS: Mapping[str, type | tuple[type, ...]] = {  # of a config.yaml: the types that readers rely on
    "kind": str,
    "model": str,
    "run": dict,
    "loading": dict,
    "evaluation": dict,
    "algorithm": (dict, str),
    "reward": (list, str),
}
FLOWS = ("images", "samples", "sounds")  # kinds of runs that the commands for flow models take
FACTS: Mapping[str, type | tuple[type, ...]] = {"command": str, "iterations": int, "machine": str}  # of a summary.json
EXTREMES = "best-worst"  # end of the name of a picture in samples/
SCORES = "scores"  # end of the name of a file with the scores of all images of an evaluation, in samples/
CHECKPOINTS = (".safetensors", whole_files.PARTS)  # ends of their names: a file, or a folder of parts
INPUTS = "inputs.json"  # what the run depends on outside its folder: see inputs.py
GONE = "{} was deleted or moved in the meantime, so nothing more can be saved there"


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
        """The settings of the run.

        Raises:
            ValueError: config.yaml cannot be read, or a part of it has the wrong type.
        """
        path = self.path / "config.yaml"
        return _checked(read_yaml(path), PARTS, path)

    def summary(self) -> dict[str, Any]:
        """Facts about the last session of the run; empty if it has not ended.

        Raises:
            ValueError: summary.json is damaged.
        """
        path = self.path / "summary.json"
        return _checked(read_json(path), FACTS, path) if path.is_file() else {}

    def changes(self) -> list[dict[str, Any]]:
        """Changes of what the run depends on: the `iteration` after which they came, and what has `changed`.

        Raises:
            ValueError: inputs.json is damaged.
        """
        path = self.path / INPUTS
        found = read_json(path).get("changes") if path.is_file() else None
        known = [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []
        return [each for each in known if isinstance(each.get("changed"), list)]

    def changed_inputs(self) -> list[str]:
        """The same as sentences."""
        return [
            f"after iteration {each.get('iteration')} the run continued with other inputs: "
            + ", ".join(map(str, each["changed"]))
            for each in self.changes()
        ]

    def origin(self) -> dict[str, Any]:
        """How the weights were made, for exports and model cards. A user's own algorithm may have no fields.

        Raises:
            ValueError: config.yaml is damaged, or the run is not over images.
        """
        config, lines = self.config(), self.lines()
        refuse_other_kinds(self.path)
        try:
            return _origin(config, lines)
        except (KeyError, TypeError, AttributeError) as error:
            what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"{self.path / 'config.yaml'} is damaged: {what}") from error

    def lines(self, having: str = "") -> list[dict[str, Any]]:
        """The metrics so far, without lines that were cut off or damaged.

        Args:
            having: skip lines without this text. So the few evaluations of a long run are found without reading it all.
        """
        text = self.metrics.read_text("utf-8", "replace") if self.metrics.exists() else ""
        return readable("\n".join(line for line in text.splitlines() if having in line) if having else text)

    def samples(self) -> list[Path]:
        """Sample grids of evaluations, oldest first."""
        found = [path for path in (self.path / "samples").glob("*.png") if path.stem.isdigit()]
        return sorted(found, key=lambda path: int(path.stem))

    def pictures(self, iteration: int) -> dict[str, Path]:
        """The pictures of an evaluation by what they show; those that were saved."""
        every = {"samples": f"{iteration:06d}.png", EXTREMES: f"{iteration:06d}-{EXTREMES}.png"}
        paths = {name: self.path / "samples" / file for name, file in every.items()}
        return {name: path for name, path in paths.items() if path.is_file()}

    def records(self) -> list[Path]:
        """The pictures of evaluations with their prompts (evaluation/samples.py), oldest first; none in older runs."""
        found = [path for path in (self.path / "samples").glob("*.json") if path.stem.isdigit()]
        return sorted(found, key=lambda path: int(path.stem))

    def scores(self) -> dict[int, Path]:
        """The scores of all images by the iteration of their evaluation; measurement.read reads them."""
        found = (self.path / "samples").glob(f"[0-9]*-{SCORES}.json")
        return dict(sorted((int(path.stem.removesuffix(f"-{SCORES}")), path) for path in found))

    def checkpoints(self) -> list[Path]:
        """All checkpoints, oldest first: files, and folders of parts where the weights are sharded."""
        found = (self.path / "checkpoints").glob("[0-9]*.*")
        every = [path for path in found if path.suffix in CHECKPOINTS and path.stem.isdigit()]
        return sorted(every, key=lambda path: (int(path.stem), path.name))

    def best(self) -> int | None:
        """The iteration with the best headline score among those with a checkpoint; None if none was evaluated."""
        saved = {int(path.stem) for path in self.checkpoints()}
        found = [(mean, -iteration) for iteration, mean in self.headlines() if iteration in saved]
        return -max(found)[1] if found else None

    def headlines(self) -> list[tuple[int, float]]:
        """(iteration, mean of the headline score) of each evaluation, without the one before training."""
        return [
            (iteration, next(iter(evaluation["scores"].values()))["overall"]["mean"])
            for iteration, evaluation in of(self.lines('"evaluation"'))
            if iteration
        ]

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder, whole or not at all.

        Raises:
            OSError: it cannot be written; an existing file is unchanged.
        """
        path = self.path / name
        with self._writing(path):
            whole_files.write(path, text)

    @contextmanager
    def _writing(self, path: Path) -> Iterator[None]:
        """An OSError inside gets the file name (a full disk gives none) and names the last checkpoint."""
        try:
            yield
        except OSError as error:
            if not self.path.is_dir():
                raise OSError(GONE.format(self.path)) from error
            raise OSError(f"cannot write {path}: {error.strerror or error}{self._intact}") from error

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """Inside, a checkpoint is written; an OSError gets the name of the last one."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{whole_files.reason(error)}{self._intact}") from error

    @property
    def _intact(self) -> str:
        """The end of an error: which checkpoint the run can continue from."""
        return f"; the checkpoint {saved[-1].name} is intact" if (saved := self.checkpoints()) else ""


def refuse_other_kinds(path: str | Path, instead: str = "") -> None:
    """Raise ValueError for a run that is not one of a flow model. Any other path is left alone.

    Args:
        instead: the command that takes the run, after its kind.
    """
    if not (Path(path) / "config.yaml").is_file():
        return
    kind = Record.open(Path(path)).config().get("kind") or "images"
    if kind not in FLOWS:
        command = " ".join(filter(None, ("flowward", kind, instead)))
        raise ValueError(f"{path} is a run of kind '{kind}', not of images: use {command}")


def _origin(config: Mapping[str, Any], lines: list[dict[str, Any]]) -> dict[str, Any]:
    algorithm, run, loading = config.get("algorithm"), config["run"], config.get("loading") or {}
    rollout = (algorithm.get("rollout") or {}) if isinstance(algorithm, dict) else {}
    precision, reward = config.get("precision"), config.get("reward")
    found = {
        "base_model": config["model"],
        **{
            name: loading.get(name)
            for name in ("revision", "variant", "size", "frames", "seconds", "text_tokens", "quantise")
        },
        "algorithm": algorithm["name"] if isinstance(algorithm, dict) else algorithm,
        "reward": [short_code(name) for name in reward] if isinstance(reward, list) else reward,
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


def _checked(found: dict[str, Any], kinds: Mapping[str, type | tuple[type, ...]], path: Path) -> dict[str, Any]:
    """The mapping, if its parts have these types or are missing."""
    for name, kind in kinds.items():
        if found.get(name) is not None and not isinstance(found[name], kind):
            raise ValueError(f"{path} is damaged: {name} is '{found[name]!s:.40}'")
    return found


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file.

    Raises:
        ValueError: it cannot be read, or is not a mapping.
    """
    try:
        found = strict_yaml.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} does not contain a mapping (lines of the form key: value)")
    return found


def read_json(path: Path) -> dict[str, Any]:
    """A mapping from a JSON file that flowward wrote.

    Raises:
        ValueError: it cannot be read, or is not a mapping.
    """
    try:
        found = strict_json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} is damaged: it does not contain a mapping")
    return found
