"""Print a report as a table, or write it as an HTML page and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict
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
    from ..pages.page import render
    from ..pages.parts import Table

    groups = _by_algorithm(report.checks)
    overview = [[name, f"{len(checks)}", _count(checks).split(", ")[1]] for name, checks in groups]
    broken = [[check.algorithm, check.law, check.remark] for check in report.failures]
    rows = [[row.algorithm, row.method, _distance(row.kl), _distance(row.chi_square)] for row in report.distances]
    return render(
        "verify.html.j2",
        title="Correctness checks with known answers",
        version=f"flowward {__version__}, {report.seconds:.1f} s",
        sentence=report.sentence,
        overview=Table(["algorithm", "laws", "verdict"], overview, about="Overview"),
        broken=Table(["algorithm", "law", "what is wrong"], broken, 3, "Broken laws"),
        distances=Table(["algorithm", "method", "KL tilt", "χ² tilt"], rows, 2, "Which methods are exact"),
        about=f"{DISTANCES}. {NOTE}",
        head=HEAD,
        groups=[_group(name, checks) for name, checks in groups],
    )


def _group(name: str, checks: list[Check]) -> dict[str, Any]:
    """The laws of an algorithm: its own, then those of the protocol, unfolded if one of them is broken."""
    own, protocol = ([check for check in checks if check.part == part] for part in ("equation", "protocol"))
    return {
        "name": name,
        "said": _count(checks),
        "own": [_law(check) for check in own],
        "protocol": [_law(check) for check in protocol],
        "protocol_said": _count(protocol),
        "open": not all(check.holds for check in protocol),
    }


def _law(check: Check) -> dict[str, Any]:
    return {"law": check.law, "source": check.source, "figures": _figures(check), "holds": check.holds,
            "remark": check.remark}  # fmt: skip
