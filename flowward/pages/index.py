"""The index of a folder of runs: the state and the headline score of each, with a link to its report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..evaluation import outcome
from ..evaluation.outcome import Measure
from ..training.record import Record
from . import report
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
    html = render("index.html.j2", title="Runs", folder=str(folder.resolve()), rows=[_row(path) for path in found])
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
    title, state = report.title(config), report.status(lines, run.summary(), config)
    evaluations = outcome.of(lines)
    if not evaluations:
        return Row(path.name, link, title, state)
    measure = Measure.every(evaluations)[0]
    (first, before), (last, after) = measure.overall[0], measure.overall[-1]
    if first == last:
        known = measure.interval(before)
        return Row(path.name, link, title, state, measure.label, *((known, "") if first == 0 else ("", known)))
    change = "" if outcome.differing(evaluations) else measure.change(before, after)
    return Row(path.name, link, title, state, measure.label, measure.interval(before), measure.interval(after), change)
