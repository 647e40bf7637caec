"""What is known of a model and of rewards without their weights; nothing is downloaded."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from ..algorithms.presets import facts
from ..models import names
from ..process.distilled import Sign, of_names, of_pipeline, of_scheduler
from ..rewards import gives_verdicts, has_gradient
from ..rewards.loading import REWARDS, find, weighted
from ..system import tables
from ..system.tables import PACKAGE
from ..training import recipes

FAMILIES = PACKAGE / "models" / "families" / "table.yaml"
TWO_TIMES = ("scenes-4step",)  # built-in models with a second time


@dataclass(frozen=True)
class Recipe:
    """A config file that comes with flowward."""

    name: str
    model: str
    algorithm: str
    rewards: frozenset[str]
    given: Mapping[str, Any]


@dataclass(frozen=True)
class Model:
    """A model, from its name, the recipes, or the configuration in its folder."""

    name: str
    built_in: bool = False
    folder: Path | None = None  # with its configuration
    two_times: bool = False
    edits: bool = False
    videos: bool = False
    sounds: bool = False
    signs: tuple[Sign, ...] = ()  # that it is step-distilled

    @property
    def distilled(self) -> bool:
        """Whether it is certain or likely; a name alone is a hint."""
        return any(sign.sure != "hint" for sign in self.signs)


@dataclass(frozen=True)
class Wanted:
    """What is optimised."""

    given: tuple[str, ...]  # as on the command line
    names: tuple[str, ...]
    gradient: bool  # of the weighted sum
    passing: bool  # every one is 1 or 0: pass or fail
    needs: Mapping[str, str]  # of built-in rewards, as `flowward list rewards` has it


@cache
def every_recipe() -> tuple[Recipe, ...]:
    found = []
    for name, file in recipes.every().items():
        given = recipes.given(file)
        own = frozenset(weighted(each)[0] for each in given["reward"])
        found.append(Recipe(name, given["model"], given["algorithm"]["name"], own, given))
    return tuple(found)


def verdicts() -> frozenset[str]:
    """The built-in rewards that are 1 or 0: pass or fail."""
    return frozenset(name for name, kind in REWARDS.items() if _passing(kind))


def _passing(kind: Any) -> bool:
    asked_later = isinstance(getattr(kind, "verdicts", None), property)  # a server says it
    return not asked_later and gives_verdicts(kind)


def wanted(rewards: Sequence[str]) -> Wanted:
    """What is known of rewards by their names; none is loaded, and no server is asked.

    Raises:
        ValueError: a name is unknown or named twice, or a weight is not a number.
    """
    pairs = [weighted(each) for each in rewards]
    own = tuple(name for name, _ in pairs)
    if not own:
        raise ValueError("name at least one --reward; flowward list rewards lists them")
    if twice := next((name for name in own if own.count(name) > 1), None):
        raise ValueError(f"reward '{twice}' is named twice; name it once, with the sum of its weights")
    kinds = [find(name) for name in own]
    table = tables.load(PACKAGE / "rewards" / "table.yaml")
    needs = {name: table[name]["needs"] for name in own if name in table}
    gradient = all(has_gradient(kind) for kind, (_, weight) in zip(kinds, pairs, strict=True) if weight)
    return Wanted(tuple(rewards), own, gradient, all(map(_passing, kinds)), needs)


def model(name: str) -> Model:
    """What is known of a model.

    Raises:
        ValueError: nothing is, or the name is of something else; it says what is possible.
    """
    where = names.located(name)
    if where in names.BUILT_IN:
        two_times = where in TWO_TIMES
        signs = (Sign("a network with two times", where, "certain"),) if two_times else ()
        return Model(where, built_in=True, two_times=two_times, signs=signs)
    if names.is_code(where):
        raise ValueError(
            f"{name} is a model of your own code, whose size and speed are not known here: flowward train --dry-run "
            "measures them"
        )
    if not names.is_pipeline(where):
        raise ValueError(names.refusal(where))
    folder = Path(where) if Path(where).is_dir() else _cached(where)
    return _of_folder(where, folder) if folder else _of_name(where)


def _cached(name: str) -> Path | None:
    """The folder of a model of the hub that was downloaded before."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(name, names.INDEX)
    return Path(found).parent if isinstance(found, str) else None


def _of_folder(name: str, folder: Path) -> Model:
    index = _read(folder / names.INDEX)
    kind = str(index.get("_class_name", ""))
    rows = {row["pipeline"]: row for row in tables.load(FAMILIES)}
    if kind not in rows:
        raise ValueError(f"{name} is a {kind or 'pipeline without a class'}, which is not one of {', '.join(rows)}")
    scheduler = _read(folder / "scheduler" / "scheduler_config.json")
    signs = [*of_pipeline(kind, index), *of_scheduler(str(scheduler.get("_class_name", "")), scheduler)]
    transformer = _read(folder / "transformer" / "config.json")
    if transformer.get("guidance_embeds") is False and rows[kind].get("guided"):
        signs.append(Sign("`guidance_embeds: false`", "transformer/config.json", "likely"))
    return _of_row(name, rows[kind], [*signs, *of_names([(name, "the model")])], folder)


def _read(file: Path) -> dict[str, Any]:
    """A JSON object; empty if there is none.

    Raises:
        ValueError: it cannot be read.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} cannot be read as JSON: {error}") from error
    return found if isinstance(found, dict) else {}


def _of_name(name: str) -> Model:
    rows = {row["example"]: row for row in tables.load(FAMILIES)}
    if name not in rows:
        raise ValueError(
            f"nothing is known of {name} without its configuration, and nothing is downloaded for advice: give the "
            f"folder of its pipeline, or one of {', '.join((*names.BUILT_IN, *rows))}"
        )
    signs = [*of_pipeline(rows[name]["pipeline"], {}), *of_names([(name, "the model")])]
    return _of_row(name, rows[name], signs)


def _of_row(name: str, row: Mapping[str, Any], signs: Sequence[Sign], folder: Path | None = None) -> Model:
    traits = {trait: bool(row.get(trait, False)) for trait in ("two_times", "edits", "videos", "sounds")}
    return Model(name, folder=folder, signs=tuple(signs), **traits)


def by_gradient() -> tuple[str, ...]:
    """The algorithms that need the gradient of the reward."""
    from ..algorithms import CLASSES

    return tuple(name for name in CLASSES if facts(name).family == "differentiated reward")
