"""One sentence for what is asked wrongly: a name that is not there, a number that cannot be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from math import isfinite


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """'unknown reward 'scens'; did you mean 'scenes'?', or the list where nothing is near."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unknown {kind} '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}")


def one_of(kind: str, name: object, known: Iterable[str]) -> None:
    """Raises ValueError where a name is none of those that are known: types are not looked at when Python runs."""
    if name not in (names := tuple(known)):
        raise ValueError(unknown(kind, str(name), names))


def positive(owner: object, *names: str) -> None:
    """Raises ValueError where one of these numbers is not positive and finite."""
    for name in names:
        if not 0 < getattr(owner, name) < float("inf"):
            raise ValueError(f"{name} must be a positive number, not {getattr(owner, name)}")


def at_least_one(owner: object, *names: str) -> None:
    """Raises ValueError where one of these numbers is below 1."""
    for name in names:
        if getattr(owner, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(owner, name)}")


def not_negative(owner: object, *names: str) -> None:
    """Raises ValueError where one of these numbers is negative or not finite."""
    for name in names:
        if not 0 <= getattr(owner, name) < float("inf"):
            raise ValueError(f"{name} must not be negative, it is {getattr(owner, name)}")


def finite(owner: object, *names: str) -> None:
    """Raises ValueError where one of these numbers is not finite."""
    for name in names:
        if not isfinite(getattr(owner, name)):
            raise ValueError(f"{name} must be a finite number, not {getattr(owner, name)}")
