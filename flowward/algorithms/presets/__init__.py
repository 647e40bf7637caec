"""Settings of every algorithm as data, one file each: as published, and the same at the size of the built-in world.

NAME.yaml begins with the facts of the table that `flowward algorithms` prints; then come presets by name, `scenes` (the
built-in model) first. Each names only what differs from the defaults of `Run`, `Settings` and the algorithm's class.
`facts` reads a file without torch; `PRESETS` makes algorithms of it, when they are asked for.

A published run trains LoRA adapters unless its `model` says otherwise. Name the model and the reward beside it. Batches
are those of all its GPUs together; microbatches only have to divide them.

The reverse-process presets for scenes use an even grid with the shift of Stable Diffusion 3. Samples of the built-in
model have 256 numbers, not 65,536, so ratios vary 16 times as much, and clips are wider. Without a shift, steps near
data drown the others: their noise moves the density most and the image least (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args

from ...system import tables
from ...system.errors import first_invalid, unknown
from ...system.nested import over, refuse_unknown
from .. import CLASSES

Family = Literal["forward process", "differentiated reward", "reverse process", "distillation"]
FOLDER = Path(__file__).parent
TRAINING: Mapping[str, Any] = {
    "model": "scenes",
    "images_per_update": 288,
    "group_size": 12,
    "updates_per_iteration": 1,
    "microbatch": 144,
    "rollout_batch": 288,
    "learning_rate": 0.0005,
    "weight_decay": 0.0,
    "gradient_clip": 1.0,
    "warmup": 10,
    "schedule": "constant",
    "mix": "rewards",
    "reward_buffer": 0,
    "ema_decay": 0.9,
    "lora_rank": None,
    "lora_alpha": None,
    "lora_targets": None,
    "reward": ("scenes",),
    "stop_when_hacked": False,
}  # the defaults of Run and Settings that some preset changes, for tables that are made without torch


@dataclass(frozen=True)
class Cost:
    """Network passes per image of the preset `scenes`, in an iteration after the first."""

    sampling: float  # forward
    training: float  # forward and backward
    copies: float  # forward, of frozen copies: the old policy, the reference


@dataclass(frozen=True)
class Written:
    """A preset as it is written down."""

    source: str
    model: str
    run: Mapping[str, Any] = field(default_factory=dict)  # fields of Run
    settings: Mapping[str, Any] = field(default_factory=dict)  # other fields of Settings
    algorithm: Mapping[str, Any] = field(default_factory=dict)  # fields that differ from the class's defaults
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # fields of Evaluation


@dataclass(frozen=True)
class Facts:
    """What is known of an algorithm without its code."""

    title: str
    family: Family
    paper: str
    arxiv: str
    when: str  # to use it
    cost: Cost
    presets: Mapping[str, Written]
    knobs: Mapping[str, Any] = field(
        default_factory=dict
    )  # what sets its strength beside the learning rate: [from, to]
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the class, where a preset has another value


@dataclass(frozen=True)
class Preset:
    """One setting of an algorithm: where it comes from, and what of `Settings` it fixes."""

    source: str
    model: str
    algorithm: Any
    run: Mapping[str, Any] = field(default_factory=dict)  # fields of Run
    settings: Mapping[str, Any] = field(default_factory=dict)  # other fields of Settings
    evaluation: Mapping[str, Any] = field(default_factory=dict)  # fields of Evaluation


@cache
def facts(algorithm: str) -> Facts:
    """What its file says; torch is not needed.

    Raises:
        ValueError: there is no such algorithm, or its file has a key that nobody knows, or lacks one.
    """
    if algorithm not in CLASSES:
        raise ValueError(unknown("algorithm", algorithm, CLASSES))
    return read(FOLDER / f"{algorithm}.yaml")


def read(file: Path) -> Facts:
    """Raises ValueError, naming the file and the key, where one is unknown or missing."""
    given, where = tables.load(file), f"presets/{file.name}"
    presets = {name: _made(Written, own, f"{where}: {name}") for name, own in given.get("presets", {}).items()}
    cost = _made(Cost, given.get("cost", {}), f"{where}: cost")
    found: Facts = _made(Facts, {**given, "presets": presets, "cost": cost}, where)
    if found.family not in get_args(Family):
        raise ValueError(f"{where}: {unknown('family', found.family, get_args(Family))}")
    return found


def _made(kind: Any, given: Mapping[str, Any], where: str) -> Any:
    refuse_unknown(given, {each.name: None for each in fields(kind)}, where)
    try:
        return kind(**given)
    except TypeError as error:  # the only way: a field without a default is missing
        raise ValueError(f"{where}: {str(error).partition('() ')[2]}") from error


@dataclass(frozen=True)
class _Own(Mapping[str, Preset]):
    """The presets of one algorithm, made on first use."""

    name: str
    made: dict[str, Preset] = field(default_factory=dict)

    def __getitem__(self, preset: str) -> Preset:
        if preset not in self.made:
            given = facts(self.name).presets[preset]
            algorithm = build(self.name, given.algorithm, f"presets/{self.name}.yaml: {preset}")
            self.made[preset] = Preset(
                given.source, given.model, algorithm, given.run, given.settings, given.evaluation
            )
        return self.made[preset]

    def __iter__(self) -> Iterator[str]:
        return iter(facts(self.name).presets)

    def __len__(self) -> int:
        return len(facts(self.name).presets)


def build(name: str, given: Mapping[str, Any], where: str) -> Any:
    """An algorithm from the fields that differ from its defaults.

    Raises:
        ValueError: one is unknown or cannot be; it begins with `where`.
    """
    from pydantic import TypeAdapter, ValidationError

    from .. import ALGORITHMS

    kind = TypeAdapter(ALGORITHMS[name])
    whole = over(kind.dump_python(ALGORITHMS[name](), mode="json"), given)
    try:
        found = kind.validate_python(whole)
    except ValidationError as error:
        path, said = first_invalid(error)
        raise ValueError(f"{where}: algorithm.{path}: {said}") from error
    refuse_unknown(whole, kind.dump_python(found, mode="json"), where, "algorithm.")
    return found


PRESETS: Mapping[str, Mapping[str, Preset]] = {name: _Own(name) for name in CLASSES}


def published(algorithm: str) -> str:
    """The preset for a real model if none is named: the first that was published.

    Raises:
        ValueError: there is no such algorithm.
    """
    return next(name for name in facts(algorithm).presets if name != "scenes")
