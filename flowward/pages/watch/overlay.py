"""A run as the values that assets/runs.js draws: curves that lie over those of other runs, figures, and settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePath
from typing import Any

import numpy as np

from ...evaluation import outcome
from ...evaluation.outcome import Measure
from ...training.lines import Warnings
from .. import curves, report
from ..curves import Run
from ..kinds import Kind
from ..page import Line, is_number
from ..parts import Axis, Chart
from ..settings import flat

Values = dict[str, Any]
MOST, LAST = 400, 200  # points of a curve, and how many of them are the last ones without gaps
EVERYWHERE = ("run.output",)  # settings that differ between all runs and explain nothing


@dataclass(frozen=True)
class Curves:
    """Charts by name without their curves, and curves by the name of their chart, over two axes."""

    charts: dict[str, Values]
    series: dict[str, Values]
    axes: dict[str, Values]

    def values(self, known: set[str]) -> Values:
        """As JSON, without the charts that are `known` already; these are added to them."""
        fresh = {name: chart for name, chart in self.charts.items() if name not in known}
        known.update(fresh)
        return {"charts": fresh, "series": self.series, "axes": self.axes}


def drawn(lines: Sequence[Line], name: str, before: float = 0.0, most: int = MOST, samples: str = "images") -> Curves:
    """The curves of consecutive lines; `before` are the seconds of the lines before them, for `samples` see Run.of."""
    run = Run.of(lines, name, samples=samples)
    run = _fewer(run, thinned(run.trained, most), thinned(run.evaluated, most))
    made = _measured(run) | _scored(run)
    series = {name: _curve(chart) for name, (chart, _) in made.items() if chart.series}
    charts = {name: {**_bare(chart), **about} for name, (chart, about) in made.items()}
    axes = {kind: _shifted(axis, before) for kind, axis in zip(("trained", "evaluated"), run.axes, strict=True)}
    return Curves(charts, series, axes)


def _measured(run: Run) -> dict[str, tuple[Chart, Values]]:
    """A chart for each metric, and what the page says beside it."""
    sections = _metrics(run.trained)
    return {
        f"metric/{each.key}": (
            each.chart,
            {"section": sections[each.key], "key": each.key, "line": each.line, "healthy": each.healthy},
        )
        for each in curves.explained([run], list(sections))
    }


def _scored(run: Run) -> dict[str, tuple[Chart, Values]]:
    """A chart for each score, and for each category of it."""
    found: dict[str, tuple[Chart, Values]] = {}
    evaluations = outcome.of(list(run.evaluated))
    for measure in Measure.every(evaluations) if evaluations else ():
        name = f"score/{measure.name}"
        title = measure.name if measure.name == measure.label else f"{measure.name}: {measure.label}"
        found[name] = curves.score([(run, measure)], title), {"section": "score", "score": measure.name}
        for category in measure.categories:
            chart = curves.score([(run, measure)], category, category)
            found[f"{name}/{category}"] = chart, {"section": "category", "score": measure.name}
    return found


def _bare(chart: Chart) -> Values:
    return replace(chart, series=()).data()


def _curve(chart: Chart) -> Values:
    own = chart.data()["series"][0]
    kept = {part: own[part] for part in ("y", "low", "high", "said") if part in own}
    return {**kept, "axis": "evaluated" if chart.dots else "trained"}


def _shifted(axis: Axis, before: float) -> Values:
    found = replace(axis, seconds=[before + x for x in axis.seconds]).values()
    return {name: found.get(name, []) for name in ("iteration", "samples", "seconds")}


def _metrics(trained: Sequence[Line]) -> dict[str, str]:
    """All metrics that are numbers, and the section of the page where each belongs."""
    recorded = dict.fromkeys(key for line in trained for key, value in line.items() if is_number(value))
    found = {key: "watched" for key in report.WATCHED if key in recorded}
    if "reward" in recorded:
        found = {"reward": "reward", **found}
    for key in recorded:
        part = "part" if "/" in key and key.partition("/")[0] in report.REWARDS else "step" if "@" in key else "other"
        if key not in report.BARE:
            found.setdefault(key, part)
    return found


def _fewer(run: Run, trained: list[int], evaluated: list[int]) -> Run:
    def some(axis: Axis, keep: list[int]) -> Axis:
        iteration, samples, seconds = (
            [values[k] for k in keep] if values else [] for values in (axis.iteration, axis.samples, axis.seconds)
        )
        return Axis(axis.key, iteration, samples, seconds, axis.run)

    axes = some(run.axes[0], trained), some(run.axes[1], evaluated)
    return replace(run, trained=[run.trained[k] for k in trained], evaluated=[run.evaluated[k] for k in evaluated],
                   axes=axes)  # fmt: skip


def thinned(lines: Sequence[Line], most: int = MOST, last: int = LAST) -> list[int]:
    """Which lines a chart can show: all of the `last`, and of each stretch before them the most unusual one.

    So no spike is lost, and each point that is shown has its own iteration and its exact value.
    """
    older = len(lines) - last
    if len(lines) <= most:
        return list(range(len(lines)))
    keys = [key for key, value in lines[-1].items() if is_number(value) and key not in report.BARE]
    table = np.array([[line[key] if is_number(line.get(key)) else 0.0 for key in keys] for line in lines[:older]])
    table = table.reshape(older, len(keys)) / np.maximum(np.std(table.reshape(older, len(keys)), axis=0), 1e-12)
    edges = np.linspace(1, older, most - last, dtype=int)  # the first line is kept, too
    found = [0]
    for low, high in pairwise(edges):
        part = table[low:high]
        found.append(int(low) + (int(np.abs(part - part.mean(axis=0)).max(axis=1).argmax()) if keys else 0))
    return [*found, *range(older, len(lines))]


def settings(config: Mapping[str, Any]) -> dict[str, str]:
    """The settings that tell runs apart."""
    return {key: value for key, value in flat(config).items() if key not in EVERYWHERE}


def words(kind: Kind) -> Values:
    """What the page says about runs of a kind."""
    return {
        "nouns": {"samples": kind.nouns.samples, "intervals": kind.intervals, "beyond": kind.beyond},
        "pictures": kind.pictures,
    }


def figures(lines: Sequence[Line], config: Mapping[str, Any], most: int = MOST) -> Values:
    """What the table of runs says about one: how far it is, its headline score, and its warnings."""
    found = Figures()
    found.add(lines)
    return found.values(config, most)


class Figures:
    """The same of a run that goes on: a new line costs the same however many there were before."""

    def __init__(self) -> None:
        self._lines = self._iteration = 0
        self._warnings = Warnings()
        self._evaluations: outcome.Evaluations = []
        self._scored: Values = {"score": "", "headline": "", "change": "", "prompts": ""}

    def add(self, lines: Sequence[Line]) -> None:
        """The next lines of metrics.jsonl."""
        if not lines:
            return
        self._lines, self._iteration = self._lines + len(lines), lines[-1]["iteration"]
        self._warnings.add(lines)
        if added := outcome.of(list(lines)):
            self._evaluations += added
            self._scored = _headline(self._evaluations)

    def values(self, config: Mapping[str, Any], most: int = MOST) -> Values:
        return {
            "what": report.title(dict(config)),
            "iteration": self._iteration,
            "planned": (config.get("run") or {}).get("iterations"),
            **self._scored,
            "health": self._warnings.rows(),
            "thinned": self._lines > most,
        }


def _headline(evaluations: outcome.Evaluations) -> Values:
    measure = Measure.every(evaluations)[0]
    (first, before), (last, after) = measure.overall[0], measure.overall[-1]
    change = "" if first == last or outcome.differing(evaluations) else measure.change(before, after)
    prompts = str(evaluations[-1][1].get("prompts", "unnamed prompts"))
    return {"headline": measure.name, "score": f"{measure.label} {measure.interval(after)}", "change": change,
            "prompts": prompts}  # fmt: skip


def short(paths: Sequence[PurePath]) -> list[str]:
    """The last parts of different paths: of each as many as tell it from the others."""
    seen = Counter(path.parts[-many:] for path in paths for many in range(1, len(path.parts) + 1))
    ends = ([path.parts[-many:] for many in range(1, len(path.parts) + 1)] for path in paths)
    return ["/".join(next(end for end in own if seen[end] == 1)) for own in ends]


def unlike(runs: Mapping[str, Values]) -> str:
    """One sentence if headline scores differ or evaluations are missing; otherwise empty."""
    headlines: dict[str, list[str]] = {}
    for name, own in runs.items():
        headlines.setdefault(f"{own['headline']} on {own['prompts']}" if own["headline"] else "", []).append(name)
    missing = headlines.pop("", [])
    parts = []
    if len(headlines) > 1:
        told = "; ".join(f"{score} ({', '.join(names)})" for score, names in headlines.items())
        parts.append(f"the headline scores differ and cannot be compared: {told}")
    if missing:
        parts.append(f"no evaluation has been recorded for {', '.join(missing)}")
    return "; ".join(parts)
