"""Config files that build on each other: `base:` in a file, and several files on the command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from ..system.paths import expanded
from .config import Settings
from .recipes import located
from .record import read_yaml

BASE = "base"  # key of the file that another one builds on


def read(files: Sequence[Path]) -> dict[str, Any]:
    """The settings in these files and their bases; what a later file says replaces what an earlier one says.

    Sections such as `run` are joined key by key. Lists are replaced whole, and so is `algorithm` if its name changes.

    Raises:
        ValueError: a file cannot be read, is not a mapping, or is its own base.
    """
    usual, found = TypeAdapter(Settings).dump_python(Settings(), mode="json"), dict[str, Any]()
    for file in files:
        for given in _with_bases(file):
            found = _laid_over(found, given, usual)
    return found


def _with_bases(file: Path) -> list[dict[str, Any]]:
    """The file, after the files that it builds on."""
    chain, found = [file], list[dict[str, Any]]()
    while True:
        given = _read(chain)
        found.insert(0, given)
        base = given.pop(BASE, None)
        if base is None:
            return found
        if not isinstance(base, str) or not base:
            raise ValueError(f"{chain[-1]}: base must be the path of a config file, not {base!r}")
        chain.append(_base(base, chain))
        if chain[-1].resolve() in [each.resolve() for each in chain[:-1]]:
            raise ValueError(f"a config file cannot be its own base: {_said(chain)}")


def _base(name: str, chain: Sequence[Path]) -> Path:
    """The file of a base: its path from the file that names it, or a recipe."""
    try:
        return located(expanded(name), chain[-1].parent)
    except ValueError as error:
        raise ValueError(f"{error} (base of {_said(chain)})") from error


def _read(chain: Sequence[Path]) -> dict[str, Any]:
    """The last file of a chain of bases."""
    try:
        return read_yaml(chain[-1])
    except ValueError as error:
        if len(chain) == 1:
            raise
        raise ValueError(f"{error} (base of {_said(chain[:-1])})") from error


def _said(chain: Sequence[Path]) -> str:
    return " -> ".join(map(str, chain))


def _laid_over(under: Mapping[str, Any], given: Mapping[str, Any], usual: Any) -> dict[str, Any]:
    """`given` over `under`; `usual` are the defaults, which show what is a list."""
    found = dict(under)
    for key, value in given.items():
        known = usual.get(key) if isinstance(usual, Mapping) else None
        if isinstance(value, Mapping) and isinstance(found.get(key), Mapping) and not isinstance(known, list):
            value = _laid_over(found[key], value, known) if _is_of_one_kind(found[key], value) else value
        found[key] = value
    return found


def _is_of_one_kind(under: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether two sections are about the same thing: another algorithm has other settings."""
    return "name" not in given or given["name"] == under.get("name")
