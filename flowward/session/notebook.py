"""Results as HTML for a notebook. Every text is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..evaluation import outcome
from ..evaluation.outcome import Measure
from ..training.record import Record

MOST = 8  # iterations in the table


def paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts."""

    def row(kind: str, cells: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(cell)}</{kind}>" for cell in cells) + "</tr>"

    return f"<table>{row('th', head)}{''.join(row('td', cells) for cells in rows)}</table>"


def summary(run: Record, state: str) -> str:
    """The result of a run: the headline score before and after, the last sample grid and a small table."""
    lines = run.lines()
    warnings = dict.fromkeys(outcome.without_figures(said) for line in lines for said in line.get("health") or [])
    latest = {outcome.without_figures(said): said for line in lines for said in line.get("health") or []}
    parts = [f"<p><b>{escape(state)}</b></p>", paragraph(outcome.sentence(outcome.of(lines)))]
    parts += [paragraph(f"Warning: {latest[kind]}") for kind in warnings]
    if grids := run.samples():
        parts.append(_picture(grids[-1]))
    return "".join(parts) + _iterations(lines)


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="samples {outcome.when(int(path.stem))}" src="data:image/png;base64,{data}">'


def _iterations(lines: Sequence[dict[str, Any]]) -> str:
    """Reward and headline score of a few evenly spaced iterations, and of the last one."""
    if not lines:
        return ""
    many = min(MOST, len(lines))
    chosen = sorted({round(k * (len(lines) - 1) / max(1, many - 1)) for k in range(many)})
    evaluations = outcome.of([*lines])
    measure = Measure.every(evaluations)[0] if evaluations else None
    scores = dict(measure.overall) if measure else {}

    def cells(line: dict[str, Any]) -> list[str]:
        at, reward = line["iteration"], line.get("reward")
        own = [measure.interval(scores[at]) if at in scores else ""] if measure else []
        return [str(at), "" if reward is None else f"{reward:.3f}", *own]

    head = ["iteration", "reward", *([measure.label] if measure else [])]
    return table(head, [cells(lines[at]) for at in chosen])
