"""The sections of an agent's report as values; behaviour.py and unrolled.py have the longer ones.

Older or damaged lines lack parts of it; those parts are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ..evaluation.outcome import GREEDY, Measure
from ..training.lines import spans
from ..training.record import Record
from . import behaviour, unrolled
from .curves import Run
from .page import Line, duration
from .parts import Table

MODULES = {"rollout": "planner", "planner": "planner", "train": "planner", "analyst": "analysis"}  # by part of the time


def sections(run: Record, lines: Sequence[Line], curve: Run) -> dict[str, Any]:
    """The values of agent.html.j2 for its own sections."""
    measured = list(behaviour.measured_in(lines))
    return {
        "modules": _modules(lines),
        "unrolled": unrolled.unrolled(run, lines),
        "tools": behaviour.tools(measured, curve),
        "turns": behaviour.turns(measured, curve),
        "spent": _spent(lines),
    }


def sampled_and_greedy(run: Run, measure: Measure, others: Sequence[Measure]) -> list[tuple[Run, Measure]]:
    """The headline and the same score of greedy episodes, for one chart."""
    greedy = next((other for other in others if other.name == f"{measure.name} {GREEDY}"), None)
    if greedy is None:
        return [(run, measure)]
    return [(replace(run, name="sampled", colour=0), measure), (replace(run, name="greedy", colour=1), greedy)]


def _modules(lines: Sequence[Line]) -> list[str]:
    """The model of each module, once for all evaluations that share them."""
    groups: dict[str, list[int]] = {}
    for line in lines:
        if named := _named(line):
            said = ", ".join(f"{module} {model}" for module, model in named.items())
            groups.setdefault(said, []).append(line["iteration"])
    one = len(groups) == 1
    return [f"Models{'' if one else f' (iterations {spans(at)})'}: {said}." for said, at in groups.items()]


def _named(line: Line) -> dict[str, Any]:
    """The model of each module in the evaluation of a line; empty if it has none."""
    found = (line.get("evaluation") or {}).get("modules")
    return found if isinstance(found, dict) else {}


def _spent(lines: Sequence[Line]) -> Table | None:
    """Seconds of all iterations by module, with the model of each."""
    named: dict[str, Any] = {}
    spent = dict.fromkeys((part for line in reversed(lines) for part in line.get("seconds") or {}), 0.0)
    for other in ("total", "cpu_share"):
        spent.pop(other, None)
    for line in lines:
        named = _named(line) or named
        for part, own in (line.get("seconds") or {}).items():
            if part in spent:
                spent[part] += own
    trained = max(1, sum(line["iteration"] > 0 for line in lines))
    rows = [
        [part, str(named.get(MODULES.get(part, part), "–")), duration(own), f"{own / trained:.3g} s"]
        for part, own in spent.items()
    ]
    return Table(["part", "model", "time", "per iteration"], rows, 2, "Time by module") if rows else None
