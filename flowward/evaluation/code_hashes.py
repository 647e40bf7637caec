"""Hashes of the code of rewards, inside the described settings of an evaluation. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CODE = "code_sha256"


def without_code(described: Any) -> Any:
    """The same settings without any hash of code."""
    if isinstance(described, Mapping):
        return {key: without_code(value) for key, value in described.items() if key != CODE}
    return [without_code(value) for value in described] if isinstance(described, list | tuple) else described


def code_differs(one: Any, other: Any) -> bool:
    """Whether both name code, and not the same. Files of older versions name none, which says nothing."""
    mine, theirs = sorted(_codes(one)), sorted(_codes(other))
    return bool(mine and theirs) and mine != theirs


def _codes(described: Any) -> Iterator[str]:
    if isinstance(described, Mapping):
        if CODE in described:
            yield str(described[CODE])
        described = list(described.values())
    for value in described if isinstance(described, list | tuple) else ():
        yield from _codes(value)
