"""Plain JSON: values that every JSON reader can read again. Dates become text; what has no place in JSON is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any, NoReturn
from uuid import UUID

import numpy as np

DEEPEST = 64  # levels of lists and mappings in each other; Python's own limit depends on who asks
DIGITS = 4000  # of a whole number; Python reads no more than 4300


def parsed(text: str) -> Any:
    """Parse JSON.

    Raises:
        ValueError: the text is not JSON, or has NaN, infinity, half a character (a lone surrogate), a key twice, a
            number that Python cannot hold, or more than 64 levels. The message is half a sentence.
    """
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    except RecursionError:
        _refuse_depth()
    if "\\u" in text or text.count("[") + text.count("{") > DEEPEST:  # nothing else can hide in it
        return plain(value)
    return value


def plain(value: Any, place: str = "", level: int = 0) -> Any:
    """The same value in JSON's types: dates, times, decimals and UUIDs become text, and tuples become lists.

    Args:
        place: its key or column, for messages.

    Raises:
        ValueError: JSON cannot hold it.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str):
        return whole(value, place)
    if isinstance(value, float) and not math.isfinite(value):
        what = "NaN" if math.isnan(value) else "infinite"
        raise ValueError(f"'{place}' is {what}, which JSON cannot hold; leave it out, or write null")
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping | list | tuple):
        return _nested(value, place, level)
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):  # pandas has a kind of its own, with other words
        return str(timedelta(value.days, value.seconds, value.microseconds))
    if isinstance(value, Decimal | UUID):
        return str(value)
    raise ValueError(f"'{place}' is of type {type(value).__name__}, which JSON cannot hold; leave it out")


def whole(text: str, place: str) -> str:
    """The text itself.

    Raises:
        ValueError: it has half a character (a lone surrogate, as in a cut emoji).
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start].encode("ascii", "backslashreplace").decode()
        raise ValueError(f"'{place}' has {half}, half of a character, such as a cut emoji; remove it") from error
    return text


def _nested(value: Any, place: str, level: int) -> Any:
    if level == DEEPEST:
        _refuse_depth()
    if not isinstance(value, Mapping):
        return [plain(each, f"{place}[{number}]", level + 1) for number, each in enumerate(value)]
    for key in value:
        if not isinstance(key, str):
            raise ValueError(f"'{place}' has the key {key!r}, but keys must be text")
        whole(key, place or "a key")
    return {key: plain(each, f"{place}.{key}" if place else key, level + 1) for key, each in value.items()}


def _refuse_depth() -> NoReturn:
    raise ValueError(f"more than {DEEPEST} lists or mappings are nested in each other")


def _constant(word: str) -> NoReturn:
    raise ValueError(f"{word} is not a JSON value; leave it out, or write null")


def _finite(text: str) -> float:
    if math.isfinite(value := float(text)):
        return value
    raise ValueError(f"the number {text:.20} is too large")


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"a number has {len(text)} digits; at most {DIGITS} are read")
    return int(text)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key '{next(key for key in keys if keys.count(key) > 1)}' comes twice")
    return found


_decoder = json.JSONDecoder(
    parse_constant=_constant, parse_float=_finite, parse_int=_integer, object_pairs_hook=_distinct
)
