"""flowward algorithms"""

from __future__ import annotations

import sys
import textwrap
from dataclasses import dataclass, replace
from typing import Annotated, Any

import tyro
import yaml
from pydantic import TypeAdapter

from ..algorithms import ALGORITHMS
from ..algorithms.presets import PRESETS, Preset
from ..system.errors import unknown
from ..training.run import Run
from .options import parse

RUN = ("images_per_update", "group_size", "updates_per_iteration", "microbatch", "learning_rate", "warmup", "schedule")


@dataclass(frozen=True)
class Algorithms:
    """List the algorithms; with a name, show where one comes from and its vetted settings."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None
    """of an algorithm"""


def run(words: list[str]) -> int:
    name = parse(Algorithms, words, "algorithms").name
    if name is None:
        for key, kind in ALGORITHMS.items():
            print(f"{key:<16}{_description(kind).splitlines()[0]}")
        return 0
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, ALGORITHMS))
    kind, presets = ALGORITHMS[name], PRESETS[name]
    print(f"{_description(kind).strip()}\n\nsettings (flowward train --algorithm {name} --algorithm.SETTING VALUE):\n")
    default = _values(presets["scenes"])
    print(_yaml(default["algorithm"]))
    print(f"\nrun on scenes (flowward train --algorithm {name} --images-per-update VALUE ...):\n")
    print(_yaml({key: default["run"][key] for key in dict.fromkeys((*RUN, *presets["scenes"].run))}))
    print(f"\npresets (flowward train --algorithm {name} --preset NAME), as they differ from `scenes`, the default:")
    for key, preset in presets.items():
        print(f"\n{key}: {preset.source}")
        changed = _difference(_values(preset), default)
        if changed:
            print(textwrap.indent(_yaml(changed), "  "))
    return 0


def _values(preset: Preset) -> dict[str, Any]:
    """All that a preset fixes, and the defaults of what it does not, as plain data."""
    run = TypeAdapter(Run).dump_python(replace(Run(), **preset.run), mode="json")
    own = TypeAdapter(type(preset.algorithm)).dump_python(preset.algorithm, mode="json")
    return {**preset.settings, "run": run, "algorithm": own}


def _difference(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(default.get(key), dict):
            value = _difference(value, default[key])
            if value:
                out[key] = value
        elif key not in default or value != default[key]:
            out[key] = value
    return out


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False).strip()


def _description(kind: type) -> str:
    """The docstring of the file that an algorithm lives in."""
    return sys.modules[kind.__module__].__doc__ or ""
