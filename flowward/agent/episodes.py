"""episodes.jsonl in a run folder: some episodes of every evaluation, one per line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..system import strict_json
from ..training.record import Record

FILE = "episodes.jsonl"


def keep(run: Record, iteration: int, episodes: Sequence[Mapping[str, Any]]) -> None:
    """Add the episodes of an evaluation. Those of the same or a later iteration, of an abandoned past, go.

    Raises:
        OSError: the file cannot be written; the old one is unchanged.
    """
    lines = [line for line in read(run) if line["iteration"] < iteration]
    lines += [{"iteration": iteration, **each} for each in episodes]
    run.write_text(FILE, "".join(strict_json.dumps(line) + "\n" for line in lines))


def read(run: Record) -> list[dict[str, Any]]:
    """All episodes, oldest first; lines that are damaged are left out."""
    path = run.path / FILE
    found = []
    for line in path.read_text("utf-8", "replace").splitlines() if path.is_file() else ():
        try:
            each = strict_json.loads(line)
        except ValueError:
            continue
        if isinstance(each, dict) and isinstance(each.get("iteration"), int):
            found.append(each)
    return found
