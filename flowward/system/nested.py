"""Nested mappings, as YAML gives them: one laid over another, and keys that nobody knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import unknown


def over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the given values in its place, key by key; a mapping with other keys is another kind of value."""
    found = dict(base)
    for key, value in given.items():
        known = base.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping) and value.keys() <= known.keys():
            value = over(known, value)
        found[key] = value
    return found


def flat(given: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """('rollout.steps', 10) of {'rollout': {'steps': 10}}: every value that is no mapping, by its path."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{where}{key}.")
        else:
            yield where + key, value


def refuse_unknown(given: Mapping[str, Any], known: Mapping[str, Any], what: str, where: str = "") -> None:
    """Raises ValueError, beginning with `what`, for a key at any depth that is not known."""
    for key, value in given.items():
        if key not in known:
            raise ValueError(f"{what}: " + unknown("setting", f"{where}{key}", [where + name for name in known]))
        if isinstance(value, Mapping) and isinstance(known[key], Mapping):
            refuse_unknown(value, known[key], what, f"{where}{key}.")
