"""What comes with flowward: the results of the study of all algorithms on the built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..system import strict_json

FOLDER = Path(__file__).parent / "shipped"
LEADERBOARD = FOLDER / "scenes.json"


def leaderboard() -> dict[str, Any]:
    """The study.json of benchmarks/studies/scenes.yaml; empty if this version has none."""
    if not LEADERBOARD.is_file():
        return {}
    found: dict[str, Any] = strict_json.loads(LEADERBOARD.read_text("utf-8"))
    return found
