"""Print a report as a table, or write it as an HTML page and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
from html import escape
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..system import strict_json
from ..system.terminal import visible
from ..training.record import Record
from . import Report
from .check import Check

HEAD = ("law", "source", "expected", "measured", "error", "tolerance", "")
DISTANCES = "Distance of each loss's minimiser from the exact optimum v*, relative to |v* - v_old|"
NOTE = (
    "Measured in one world of 200 atoms. All methods have the same first-order gain, 1 / 1.1 (with ghuber it decreases "
    "with the error). Bare: not divided by a point's own error."
)
_STYLE = """<style>
.laws { table-layout: fixed; width: 100%; min-width: 56rem; }
.laws td:first-child { overflow-wrap: anywhere; } .laws td.number { white-space: nowrap; }
.laws col.law { width: 38%; } .laws col.source { width: 12%; } .laws col.verdict { width: 5.5rem; }
.laws th, .laws td { padding-right: .9rem; }
.holds { color: #2f855a; } .breaks { color: #c53030; font-weight: 600; }
@media (prefers-color-scheme: dark) { .holds { color: #68d391; } .breaks { color: #fc8181; } }
</style>"""


def figure(value: float, digits: int = 4) -> str:
    """A few digits; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.{digits}g}"


def _figures(check: Check) -> list[str]:
    return [
        figure(check.expected), figure(check.measured), figure(check.error, 2), figure(check.tolerance, 1),
    ]  # fmt: skip


def _by_algorithm(checks: Iterable[Check]) -> list[tuple[str, list[Check]]]:
    return [(name, list(own)) for name, own in groupby(checks, attrgetter("algorithm"))]


def _count(checks: list[Check]) -> str:
    broken = sum(not check.holds for check in checks)
    return f"{len(checks)} laws, {f'{broken} broken' if broken else 'all hold'}"


def show(report: Report, full: bool = False, console: Console | None = None) -> None:
    """Print a report. Laws of the protocol that hold share one line, unless `full` or there are no other laws."""
    if console is None:
        console = Console(highlight=False)
        if not console.is_terminal:
            console = Console(highlight=False, width=100)
    for name, checks in _by_algorithm(report.checks):
        console.print(Text.assemble("\n", (visible(name), "bold"), f"  {_count(checks)}"))
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
        for column in HEAD:
            words = column in ("law", "source", "")
            grid.add_column(column, justify="left" if words else "right", no_wrap=column not in ("law", "source"))
        protocol = [check for check in checks if check.part == "protocol" and check.holds]
        short = not full and any(check.part == "equation" for check in checks)
        if short:
            grid.add_row(f"{len(protocol)} laws of the protocol", "protocol", *[""] * 4, Text("hold", "green"))
        for check in checks:
            if short and check in protocol:
                continue
            law = Text(visible(check.law))
            if not check.holds:
                law.append(visible(f"\n→ {check.remark}"), "red")
            verdict = Text("holds", "green") if check.holds else Text("BROKEN", "bold red")
            grid.add_row(law, Text(check.source), *_figures(check), verdict)
        console.print(grid)
    if report.distances:
        grid = Table(box=box.SIMPLE_HEAD, padding=(0, 1), show_edge=False, pad_edge=False)
        for column in ("algorithm", "method", "KL tilt", "chi^2 tilt"):
            grid.add_column(column, justify="left" if column in ("algorithm", "method") else "right")
        for row in report.distances:
            grid.add_row(Text(visible(row.algorithm)), row.method, _distance(row.kl), _distance(row.chi_square))
        console.print(f"\n[bold]{DISTANCES}[/bold]\n{NOTE}")
        console.print(grid)
    console.print(f"\n{report.sentence} ({report.seconds:.1f} s)")
    if any(check.part == "equation" for check in report.checks):
        console.print("Source: an arXiv number, a derivation in docs/verify.md, or the protocol of all algorithms.")


def _distance(value: float) -> str:
    return "exact" if value < 1e-9 else figure(value, 3)


def write(report: Report, folder: Path) -> list[Path]:
    """Write verify.html and verify.json.

    Raises:
        OSError: the files cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {"verify.html": html(report), "verify.json": strict_json.dumps(to_dict(report), 2) + "\n"}
    for name, text in written.items():
        Record(folder).write_text(name, text)
    return [folder / name for name in written]


def to_dict(report: Report) -> dict[str, Any]:
    """The report as plain data for JSON."""
    return {
        "version": __version__,
        "holds": not report.failures,
        "seconds": report.seconds,
        "checks": [{**asdict(check), "holds": check.holds} for check in report.checks],
        "distances": [asdict(row) for row in report.distances],
    }


def html(report: Report) -> str:
    """The report as a self-contained HTML page."""
    from ..pages.page import page, table, text

    groups = _by_algorithm(report.checks)
    overview = [[name, f"{len(checks)}", _count(checks).split(", ")[1]] for name, checks in groups]
    parts = [
        _STYLE,
        "<h1>Correctness checks with known answers</h1>",
        f"<p class=quiet>flowward {__version__}, {report.seconds:.1f} s</p>",
        f"<p class=result>{text(report.sentence)}</p>",
        table(["algorithm", "laws", "verdict"], overview),
        "<p>Each law compares an algorithm's code with a formula that was derived without this code, in float64. "
        "For tensors, expected and measured are lengths along the expected tensor, so a wrong sign gives a negative "
        "number. The error is the largest difference relative to the largest value. The source is an arXiv number, a "
        "derivation in docs/verify.md, or the protocol of all algorithms.</p>",
    ]
    if report.failures:
        broken = [[check.algorithm, check.law, check.remark] for check in report.failures]
        parts.append("<h2>Broken</h2>" + table(["algorithm", "law", "what is wrong"], broken, left=3))
    if report.distances:
        rows = [[row.algorithm, row.method, _distance(row.kl), _distance(row.chi_square)] for row in report.distances]
        parts.append(f"<h2>Which methods are exact</h2><p>{text(DISTANCES)}. {text(NOTE)}</p>")
        parts.append(table(["algorithm", "method", "KL tilt", "χ² tilt"], rows, left=2))
    for name, checks in groups:
        parts.append(f"<h2>{escape(name)}</h2><p class=quiet>{_count(checks)}</p>")
        protocol = [check for check in checks if check.part == "protocol"]
        own = [check for check in checks if check.part == "equation"]
        if own:
            parts.append(_laws(own))
            closed = all(check.holds for check in protocol)
            summary = f"The protocol of all algorithms: {_count(protocol)}"
            parts.append(f"<details{'' if closed else ' open'}><summary>{summary}</summary>{_laws(protocol)}</details>")
        else:
            parts.append(_laws(protocol))
    return page("flowward verify", "\n".join(parts))


def _laws(checks: list[Check]) -> str:
    head = "".join(f"<th{' class=number' * (name not in ('law', 'source', ''))}>{name}</th>" for name in HEAD)
    rows = []
    for check in checks:
        remark = "" if check.holds else f"<br><span class=breaks>{escape(check.remark)}</span>"
        numbers = "".join(f"<td class=number>{cell}</td>" for cell in _figures(check))
        verdict = "<td class=holds>holds</td>" if check.holds else "<td class=breaks>broken</td>"
        rows.append(f"<tr><td>{escape(check.law)}{remark}</td><td>{escape(check.source)}</td>{numbers}{verdict}</tr>")
    columns = "<col class=law><col class=source><col><col><col><col><col class=verdict>"
    return f"<div class=wide><table class=laws>{columns}<tr>{head}</tr>{''.join(rows)}</table></div>"
