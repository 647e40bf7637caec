"""flowward algorithms"""

from __future__ import annotations

import sys
from dataclasses import dataclass

import tyro
import yaml
from pydantic import TypeAdapter

from ..algorithms import ALGORITHMS
from ..errors import unknown
from .options import parse


@dataclass(frozen=True)
class Algorithms:
    """List the algorithms; with a name, show where one comes from and its vetted settings."""

    name: tyro.conf.Positional[str | None] = None


def run(words: list[str]) -> int:
    name = parse(Algorithms, words, "algorithms").name
    if name is None:
        for key, kind in ALGORITHMS.items():
            print(f"{key:<16}{_description(kind).splitlines()[0]}")
        return 0
    if name not in ALGORITHMS:
        raise ValueError(unknown("algorithm", name, ALGORITHMS))
    kind = ALGORITHMS[name]
    print(_description(kind).strip() + "\n\nsettings (flowward train --algorithm.NAME VALUE):\n")
    print(yaml.safe_dump(TypeAdapter(kind).dump_python(kind(), mode="json"), sort_keys=False).strip())
    return 0


def _description(kind: type) -> str:
    """The docstring of the file that an algorithm lives in."""
    return sys.modules[kind.__module__].__doc__ or ""
