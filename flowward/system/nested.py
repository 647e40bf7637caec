"""Nested mappings, as YAML gives them: one laid over another, and keys that nobody knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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


def joined(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Both, key by key at any depth; where both have a value, the given one."""
    found = dict(base)
    for key, value in given.items():
        own = found.get(key)
        found[key] = joined(own, value) if isinstance(own, Mapping) and isinstance(value, Mapping) else value
    return found


def nested(given: Mapping[str, Any]) -> dict[str, Any]:
    """{'rollout': {'steps': 10}} of {'rollout.steps': 10}."""
    found: dict[str, Any] = {}
    for path, value in given.items():
        for part in reversed(path.split(".")):
            value = {part: value}
        found = joined(found, value)
    return found


def flat(given: Mapping[str, Any], where: str = "") -> Iterator[tuple[str, Any]]:
    """('rollout.steps', 10) of {'rollout': {'steps': 10}}: every value that is no mapping, by its path."""
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{where}{key}.")
        else:
            yield f"{where}{key}", value


def refuse_unknown(
    given: Mapping[str, Any], known: Mapping[str, Any], what: str, where: str = "", top: Mapping[str, Any] | None = None
) -> None:
    """Raises ValueError, beginning with `what`, for a key at any depth that is not known.

    `top` has all keys that are known, so that a key at the wrong depth is pointed to its place.
    """
    top = known if top is None else top
    for key, value in given.items():
        if key not in known:
            if others := [place for place in _places(top) if place.rpartition(".")[2] == key]:
                raise ValueError(f"{what}: '{where}{key}' is in the wrong place; it belongs to {' or '.join(others)}")
            raise ValueError(f"{what}: " + unknown("setting", f"{where}{key}", [where + name for name in known]))
        if isinstance(value, Mapping) and isinstance(known[key], Mapping):
            refuse_unknown(value, known[key], what, f"{where}{key}.", top)


def _places(known: Mapping[str, Any], where: str = "") -> Iterator[str]:
    for key, value in known.items():
        yield f"{where}{key}"
        if isinstance(value, Mapping):
            yield from _places(value, f"{where}{key}.")


def each_word(given: Any, change: Callable[[str], str]) -> Any:
    """The same with every text changed, except keys."""
    if isinstance(given, Mapping):
        return {key: each_word(value, change) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [each_word(value, change) for value in given]
    return change(given) if isinstance(given, str) else given


def lists_of_one(known: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The given values, with a list where one is known and a single text or a mapping is given.

    `reward: pickscore` becomes [pickscore], `reward: {pickscore: 2}` [pickscore=2], and
    `reward_options: {pickscore: {batch: 4}}` [pickscore.batch=4].
    """
    found = dict(given)
    for key, value in given.items():
        usual = known.get(key)
        if isinstance(usual, Mapping) and isinstance(value, Mapping):
            found[key] = lists_of_one(usual, value)
        elif isinstance(usual, list) and isinstance(value, str):
            found[key] = [value]
        elif isinstance(usual, list) and isinstance(value, Mapping):
            pairs = flat(value)
            found[key] = [name if each is None else f"{name}={_word(each)}" for name, each in pairs]
    return found


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
