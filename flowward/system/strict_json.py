"""JSON that every reader accepts: NaN and infinity, which standard JSON does not allow, become null."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any


def dumps(value: Any, indent: int | None = None) -> str:
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def loads(text: str) -> Any:
    """Parse JSON from `dumps`, or an older file with Infinity and NaN, which also become None."""
    return json.loads(text, parse_constant=lambda word: None)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
