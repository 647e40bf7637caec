"""One sentence for wrong input: an unknown name or an impossible number."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import ValidationError

LARGEST = 1e30  # of a setting: networks compute in float32, which ends at 3e38


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """'unknown reward 'scens'; did you mean 'scenes'?'; lists the known names if none is similar."""
    names = sorted(known)
    within = [each for each in names if len(name) > 2 and name in each]  # nft: diffusion_nft
    near = within if len(within) == 1 else difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"unknown {kind} '{name}'; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}")


def named(error: BaseException) -> str:
    """'KeyError: 'weights'', in one line; only the kind of the error if it has no text."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # a user's class may fail in any way
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_invalid(error: ValidationError) -> tuple[str, str]:
    """(field, what is wrong with it) of the first error that pydantic found; the field is empty for the whole."""
    first = error.errors()[0]
    where, kind, said = ".".join(map(str, first["loc"])), str(first["type"]), first["msg"].removeprefix("Value error, ")
    for ending, what in KINDS.items():
        if kind.startswith(ending):
            said = f"must be {what}, not {_short(first['input'])}"
    return where, said or "is refused without a message"


KINDS = {  # beginnings of pydantic's kinds of errors
    "int_": "a whole number",
    "float_": "a number",
    "bool_": "true or false",
    "string_type": "a text",
    "tuple_type": "a list, such as [1, 2]",
    "list_type": "a list, such as [1, 2]",
    "path_type": "a path",
    "dataclass_type": "a mapping with settings",
}


def _short(value: object, most: int = 60) -> str:
    said = repr(value)
    return said if len(said) <= most else f"{said[:most]} ..."


def one_of(kind: str, name: object, known: Iterable[str]) -> None:
    """Raise ValueError if a name is not among the known ones (Python does not check `Literal` types)."""
    if name not in (names := tuple(known)):
        raise ValueError(unknown(kind, str(name), names))


def positive(owner: object, *names: str) -> None:
    """Raise ValueError if one of these attributes is not a positive number that float32 holds."""
    for name in names:
        if not 0 < getattr(owner, name) < float("inf"):
            raise ValueError(f"{name} must be a positive number, not {getattr(owner, name)}")
    _not_huge(owner, names)


def at_least_one(owner: object, *names: str) -> None:
    """Raise ValueError if one of these attributes is below 1."""
    for name in names:
        if getattr(owner, name) < 1:
            raise ValueError(f"{name} must be at least 1, not {getattr(owner, name)}")


def between(owner: object, low: float, high: float, *names: str) -> None:
    """Raise ValueError if one of these attributes is not a number from `low` to `high`."""
    for name in names:
        if not low <= getattr(owner, name) <= high:
            raise ValueError(f"{name} must be between {low:,} and {high:,}, not {getattr(owner, name)}")


def not_negative(owner: object, *names: str) -> None:
    """Raise ValueError if one of these attributes is negative, NaN or infinite."""
    for name in names:
        if not 0 <= getattr(owner, name) < float("inf"):
            raise ValueError(f"{name} must not be negative, it is {getattr(owner, name)}")
    _not_huge(owner, names)


def finite(owner: object, *names: str) -> None:
    """Raise ValueError if one of these attributes is NaN or infinite."""
    for name in names:
        if not isfinite(getattr(owner, name)):
            raise ValueError(f"{name} must be a finite number, not {getattr(owner, name)}")
    _not_huge(owner, names)


def _not_huge(owner: object, names: Iterable[str]) -> None:
    for name in names:
        if abs(getattr(owner, name)) > LARGEST:
            raise ValueError(f"{name} must be between -{LARGEST:g} and {LARGEST:g}, not {getattr(owner, name)}")
