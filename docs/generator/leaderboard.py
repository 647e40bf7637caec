"""The leaderboard as a page with curves and tables that sort, from the results that come with the package."""

from __future__ import annotations

from flowward.pages import study
from flowward.studies import shipped

PAGE = "leaderboard.html"
COMMAND = "flowward study benchmarks/studies/scenes.yaml --output runs/leaderboard"


def files() -> dict[str, str]:
    """Whole HTML by the path of its file in docs/; nothing as long as no results are there."""
    found = shipped.leaderboard()
    return {PAGE: study.of(found, COMMAND)} if found else {}
