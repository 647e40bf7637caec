"""The results that come with the package: the leaderboard of the built-in world (docs/leaderboard.md)."""

from __future__ import annotations

from typing import Any

from ..system import strict_json
from ..system.tables import PACKAGE

FILE = PACKAGE / "studies" / "shipped" / "scenes.json"


def leaderboard() -> dict[str, Any]:
    """The findings of the study benchmarks/studies/scenes.yaml, as in study.json with rounded numbers; {} if missing."""
    return dict(strict_json.loads(FILE.read_text("utf-8"))) if FILE.is_file() else {}
