"""The index of a folder of runs: the state and the headline score of each, with a link to its report."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from ..evaluation import outcome
from ..evaluation.outcome import Measure
from ..training.record import Record
from . import kinds, report
from .page import render


@dataclass(frozen=True)
class Row:
    """One run."""

    name: str
    link: str  # to its report; empty if that cannot be written
    title: str = ""
    state: str = ""  # or what is wrong with the folder
    score: str = ""  # name of the headline score
    before: str = ""
    after: str = ""
    change: str = ""
    intervals: str = ""  # what its intervals are over; empty if it has none


def runs(folder: Path) -> list[Path]:
    """The run folders in a folder that is none itself, by name."""
    if (folder / "config.yaml").is_file() or not folder.is_dir():
        return []
    return sorted(path.parent for path in folder.glob("*/config.yaml"))


def write(folder: Path) -> Path:
    """Write index.html into a folder of runs, with the reports that are missing or out of date, and return its path.

    A run whose files are damaged gets a row that says so.

    Raises:
        ValueError: there are no run folders in it.
        OSError: the page cannot be written; an existing one is unchanged.
    """
    found = runs(folder)
    if not found:
        raise ValueError(f"{folder} contains no run folders")
    rows = [_row(path) for path in found]
    over = " or ".join(dict.fromkeys(row.intervals for row in rows if row.intervals))
    html = render("index.html.j2", title="Runs", folder=str(folder.resolve()), rows=rows, intervals=over)
    Record(folder).write_text("index.html", html)
    return folder / "index.html"


def _row(path: Path) -> Row:
    try:
        return _read(path, _link(path))
    except (ValueError, OSError) as error:
        return Row(path.name, "", state=str(error))


def _link(path: Path) -> str:
    """The address of the run's report, which is written if its metrics or its summary are newer."""
    page = path / "report.html"
    sources = [file for file in (path / "metrics.jsonl", path / "summary.json", path / "config.yaml") if file.exists()]
    if not page.exists() or any(file.stat().st_mtime_ns > page.stat().st_mtime_ns for file in sources):
        report.write(path)
    return f"{quote(path.name)}/report.html"


def _read(path: Path, link: str) -> Row:
    run = Record.open(path)
    config, lines = run.config(), run.lines()
    kind = kinds.of(config)
    title, state = report.title(config), report.status(lines, run.summary(), config)
    evaluations = outcome.of(lines)
    if not evaluations:
        return Row(path.name, link, title, state)
    measure = Measure.every(evaluations)[0]
    (first, before), (last, after) = measure.overall[0], measure.overall[-1]
    row = Row(path.name, link, title, state, measure.label, intervals=kind.intervals)
    if first == last:
        known = measure.interval(before)
        return replace(row, before=known) if first == 0 else replace(row, after=known)
    change = "" if outcome.differing(evaluations) else measure.change(before, after)
    return replace(row, before=measure.interval(before), after=measure.interval(after), change=change)
