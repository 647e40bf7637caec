"""What a run is doing, seen from outside: by its lock, its summary.json, and the age of its last line.

A lock is looked up and never taken: a run that starts at that moment would find its folder locked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

LOCKS = Path("/proc/locks")  # Linux only; it does not list locks of other machines and containers
LOCK = re.compile(r"FLOCK\s+ADVISORY\s+WRITE\s+-?\d+\s+([0-9a-f]+):([0-9a-f]+):(\d+)")
SILENT = 120.0  # seconds without a line after which a run without a lock has ended
PATIENT = 5  # or so many iterations, if that is longer


@dataclass(frozen=True)
class State:
    kind: Literal["running", "finished", "stopped", "failed"]
    said: str = ""  # more than the kind says


def locks() -> set[tuple[int, int, int]]:
    """(major, minor, inode) of all files and folders with a lock; empty if the system does not tell."""
    try:
        found = LOCK.findall(LOCKS.read_text())
    except OSError:
        return set()
    return {(int(major, 16), int(minor, 16), int(inode)) for major, minor, inode in found}


def is_held(path: Path, held: set[tuple[int, int, int]]) -> bool:
    """Whether a folder is among the locked ones."""
    try:
        own = os.stat(path)
    except OSError:
        return False
    return (os.major(own.st_dev), os.minor(own.st_dev), own.st_ino) in held


def of(
    lines: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    planned: int | None,
    silent: float,
    held: bool | None,
) -> State:
    """The state of a run.

    Args:
        lines: of metrics.jsonl, oldest first.
        summary: of summary.json; empty if there is none.
        planned: iterations in its settings.
        silent: seconds since its last line, or since it began.
        held: whether its folder is locked now; None if it is not, but was before.
    """
    done = lines[-1]["iteration"] if lines else 0
    patience = _patience(lines)
    if held:
        return State("running", "no new line for a long time" if silent > 10 * patience else "")
    if summary and done <= int(summary.get("iterations") or done):  # a resumed run has its older summary until it ends
        return State("finished") if summary.get("finished") else State("stopped", "before its last iteration")
    if lines and done == planned:  # runs from Python have no summary.json
        return State("finished")
    if held is None or silent > patience:
        return State("failed", "ended without a summary: an error, or it was killed")
    return State("running")


def _patience(lines: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which a run writes its next line."""
    spent = [float((line.get("seconds") or {}).get("total") or 0.0) for line in lines[-20:]]
    return max(SILENT, PATIENT * median(spent)) if spent else SILENT
