"""`flowward train --resume auto`: one command line that starts a run, or continues it if it has begun.

A scheduler that restarts jobs gives the same words every time.
"""

from __future__ import annotations

import os
from pathlib import Path

from ..training.folder import RunFolder
from ..training.record import FLOWS, Record
from .options import take

AUTO = "auto"
CHANGED = "--changed-inputs"
LEASE = 100.0  # seconds: servers of NFS keep the lock of a machine that has failed for 90
RUNS = Path("runs")  # where runs without an --output go


def resolved(words: list[str], kind: str = "images") -> tuple[list[str], str]:
    """The words with `--resume RUN` in the place of `--resume auto`, or without it if the run has not begun.

    Also a sentence that says which of the two; empty if the words do not ask for it.

    Args:
        kind: of the runs to choose from, if no --output names one.

    Raises:
        ValueError: there is no run to continue and no --output, or the run has another algorithm than the words.
    """
    resume, rest = take(words, "resume")
    if resume != AUTO:
        return words, ""
    output, others = take(rest, "output")
    run = Path(output) if output else _newest(kind)
    if not (run / "config.yaml").is_file():
        return rest, f"{run} has not begun: starting it"
    for name in ("config", "preset"):  # the run has its own settings by now
        _, others = take(others, name)
    algorithm, others = take(others, "algorithm")
    known = Record.open(run).config().get("algorithm")
    if algorithm and isinstance(known, dict) and known.get("name") != algorithm:
        raise ValueError(
            f"{run} was started with --algorithm {known.get('name')}, not {algorithm}: leave it out, or use another "
            "--output"
        )
    return ["--resume", str(run), *others], f"{run} has begun: continuing it with its own settings"


def wait_for_end(run: Path) -> None:
    """Wait until the folder of a restarted run is not locked: the process that was killed may still be there.

    A process gives its lock back when it ends. That of a machine that has failed stays for a while. With torchrun, the
    first process waits for this before it meets the others (see attempts.py).

    Raises:
        ValueError: another process still writes to it after LEASE seconds.
    """
    if os.environ.get("RANK", "0") == "0":
        with RunFolder.open(run).held(LEASE):
            pass


def _newest(kind: str) -> Path:
    """The unfinished run of this kind in runs/ that was written to last.

    Raises:
        ValueError: there is none.
    """
    found = [path.parent for path in RUNS.glob("*/config.yaml")]
    for run in sorted(found, key=_written, reverse=True):
        record = Record.open(run)
        own = record.config().get("kind") or "images"
        if (own == kind or {own, kind} <= {*FLOWS}) and not _finished(record):
            return run
    raise ValueError(f"there is no unfinished run in {RUNS}/: name the folder of a new one with --output")


def _written(run: Path) -> float:
    return max(path.stat().st_mtime for path in (run / "config.yaml", run / "metrics.jsonl") if path.exists())


def _finished(run: Record) -> bool:
    planned = (run.config().get("run") or {}).get("iterations")
    saved = [path.stem for path in run.checkpoints()]
    return isinstance(planned, int) and bool(saved) and int(saved[-1]) >= planned


def changed_inputs(words: list[str]) -> tuple[bool, list[str]]:
    """Whether inputs of a resumed run may have changed, and the other words."""
    return CHANGED in words, [word for word in words if word != CHANGED]
