"""Nested settings as one flat list of plain texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested settings with keys such as rewards.ocr.model."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{before}{key}.")
        elif isinstance(value, list):
            found[f"{before}{key}"] = ", ".join(_plain(each) for each in value) or "none"
        else:
            found[f"{before}{key}"] = _plain(value)
    return found


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
