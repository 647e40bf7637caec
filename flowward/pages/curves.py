"""Charts of a run's metrics and scores against iterations, samples or wall time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..evaluation.outcome import Measure, Scores, bounded
from ..training import glossary
from ..training.explanation import SHARES
from .page import Line, is_number
from .parts import Axis, Chart, Series

SHARE = (0.0, 1.0)
PERCENT = (0.0, 100.0)


@dataclass(frozen=True)
class Run:
    """The lines of a run, as charts need them."""

    trained: Sequence[Line]  # of iterations, oldest first
    evaluated: Sequence[Line]  # with an evaluation, oldest first
    axes: tuple[Axis, Axis]  # of these two
    name: str = ""  # on pages with several runs
    colour: int = 0

    @classmethod
    def of(cls, lines: Sequence[Line], name: str = "", colour: int = 0, samples: str = "images") -> Run:
        """From the lines of metrics.jsonl; `name` tells several runs on one page apart.

        Args:
            samples: the key of the number of samples that were trained on.
        """
        spent = list(accumulate(_total(line) for line in lines))
        trained = [k for k, line in enumerate(lines) if line["iteration"] > 0]
        evaluated = [k for k, line in enumerate(lines) if (line.get("evaluation") or {}).get("scores")]

        def axis(kind: str, at: list[int]) -> Axis:
            seconds = [spent[k] for k in at] if spent and spent[-1] > 0 else []
            seen = [lines[k][samples] if is_number(lines[k].get(samples)) else 0 for k in at]
            return Axis(f"{kind} {colour}", [lines[k]["iteration"] for k in at], seen, seconds, name)

        axes = axis("trained", trained), axis("evaluated", evaluated)
        return cls([lines[k] for k in trained], [lines[k] for k in evaluated], axes, name, colour)


def _total(line: Line) -> float:
    spent = line.get("seconds") or {}
    return float(spent.get("total") or 0.0)


def metric(runs: Sequence[Run], key: str, title: str = "", height: int = 200) -> Chart:
    """The metric `key` of one or several runs. Shares go from 0 to 1."""
    known = glossary.find(key)
    series = []
    for run in runs:
        y = [line[key] if is_number(line.get(key)) else None for line in run.trained]
        if any(value is not None for value in y):
            series.append(Series(y, run.axes[0].key, run.name, key=key, colour=run.colour))
    share = known is not None and known.unit == SHARES
    return Chart(title or (known.title if known else key), series, limits=SHARE if share else None, smooth=True,
                 height=height)  # fmt: skip


def score(runs: Sequence[tuple[Run, Measure]], title: str, category: str = "", height: int = 200) -> Chart:
    """A score of one or several runs with its 95 % intervals, over all prompts or of one category."""
    series = []
    for run, measure in runs:
        own = measure.categories.get(category, []) if category else measure.overall
        key = "/".join(filter(None, (measure.name, category)))
        series.append(replace(scored(measure, own, run), key=key))
    percent = all(measure.percent for _, measure in runs)
    return Chart(title, series, limits=PERCENT if percent else None, suffix=" %" if percent else "", dots=True,
                 height=height)  # fmt: skip


def scored(measure: Measure, scores: Scores, run: Run) -> Series:
    """The scores at the run's evaluations; where one lacks this score, the curve has a gap."""
    factor, at = 100 if measure.percent else 1, dict(scores)
    found = [at.get(line["iteration"]) for line in run.evaluated]
    sure = any(each is not None and bounded(each) for each in found)
    low, high = (
        [None if each is None or each[end] is None else factor * each[end] for each in found] if sure else []
        for end in ("low", "high")
    )
    y = [None if each is None else factor * each["mean"] for each in found]
    said = ["" if each is None else measure.interval(each) for each in found]
    return Series(y, run.axes[1].key, run.name, low, high, said, colour=run.colour)


@dataclass(frozen=True)
class Explained:
    """The chart of a metric, and what the glossary says about it."""

    chart: Chart
    key: str
    line: str = ""
    healthy: str = ""


def explained(runs: Sequence[Run], keys: Sequence[str]) -> list[Explained]:
    """A chart for each metric. A key of somebody's own algorithm, or of one rollout step, has no explanation."""
    found = []
    for key in keys:
        known, step, name = glossary.find(key), key.partition("@")[2], key.partition("/")[2]
        title = f"{known.title}, step {step}" if known and step else name or (known.title if known else key)
        own = (known.line, known.healthy) if known and not step else ("", "")
        found.append(Explained(metric(runs, key, title), key, *own))
    return found
