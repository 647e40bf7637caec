"""The HTML page of an evaluation: scores with intervals, differences, images side by side, and all settings.

The page contains everything it needs (images, charts and their code), so it works offline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..evaluation import outcome
from ..evaluation.comparison import Difference, hacking, warnings
from ..evaluation.measurement import Measurement
from ..evaluation.outcome import Measure, bounded
from .curves import PERCENT
from .page import render
from .parts import Chart, Series, Table, Tile
from .pictures import galleries, ranking
from .settings import flat

Result = Mapping[str, Any]  # the summary of a measurement


def of(found: Sequence[Measurement], changes: Sequence[Difference], command: str = "") -> str:
    """The page of one or several models, with the differences between them."""
    names = [each.name for each in found]
    title = "Evaluation of " + " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    short = _short(names)
    found = [replace(each, name=short[each.name]) for each in found]
    changes = [replace(each, before=short[each.before], after=short[each.after]) for each in changes]
    results = [each.summary() for each in found]
    labels = [each.name for each in found]
    guards = dict.fromkeys(guard for each in found for guard in each.guards)
    headline, *others = dict.fromkeys(score for each in found for score in each.scores)
    return render(
        "evaluation.html.j2",
        charts=True,
        title=title,
        status=_status(results[0], headline, list(guards)),
        results=_sentences(found, results, changes),
        hacked=[f"{line}." for line in hacking(found, changes)],
        warnings=[f"{line[0].upper()}{line[1:]}." for line in warnings(found)],
        figures=_tiles(labels, results),
        differences=_differences(results, changes),
        headline=_score(headline, labels, results),
        others=[_score(name, labels, results, " (guard)" * (name in guards)) for name in others],
        models=labels,
        galleries=galleries(found) if all(each.pictures for each in found) else [],
        ranking=ranking(found),
        settings=_settings(results),
        command=command,
    )


def _short(names: Sequence[str]) -> dict[str, str]:
    """Paths without their folders, if the rest is still unique."""
    last = {name: re.sub(r"^\S*/(?=[^/]+$)", "", name) for name in names}
    return last if len(set(last.values())) == len(names) else {name: name for name in names}


def _measure(name: str, results: Sequence[Result]) -> Measure:
    return Measure.of(name, [(k, dict(result)) for k, result in enumerate(results)])


def _status(result: Result, headline: str, guards: Sequence[str]) -> str:
    watched = f"; guards: {', '.join(guards)}" if guards else ""
    samples = outcome.nouns(result).samples
    return (
        f"{result['images']:,} {samples} per model, prompts {result['prompts']}, seed {result['seed']}. "
        f"Headline score: {headline}{watched}."
    )


def _sentences(found: Sequence[Measurement], results: Sequence[Result], changes: Sequence[Difference]) -> list[str]:
    """The headline score of each later model compared with the first one; of a single model, its headline score."""
    name = found[0].headline
    measure = _measure(name, results)
    what = f"{measure.label} on {results[0]['prompts']}"
    if len(found) == 1:
        return [f"{found[0].name}: {what} is {measure.interval(measure.overall[0][1])}."]
    said = []
    for each in changes:
        if each.before == found[0].name and each.score == name and each.category is None:
            size = measure.difference(each.mean, each.low, each.high)
            verdict = "significant" if each.significant else "no evidence of a difference"
            sign = "" if each.p_said.startswith("<") else "= "
            said.append(f"{each.after} against {each.before}: {what} {size}, {verdict} (p {sign}{each.p_said}).")
    return said


def _tiles(labels: Sequence[str], results: Sequence[Result]) -> list[Tile]:
    """The headline score of every model."""
    measure = _measure(next(iter(results[0]["scores"])), results)
    return [Tile(measure.number(each["mean"]), f"{labels[k]} {measure.bounds(each)}") for k, each in measure.overall]


def _differences(results: Sequence[Result], changes: Sequence[Difference]) -> list[tuple[str, Table, Table | None]]:
    """For each pair of models: its title, the table of all scores, and the one by category."""
    found = []
    pairs: dict[tuple[str, str], list[Difference]] = {}
    for each in changes:
        pairs.setdefault((each.before, each.after), []).append(each)
    measures = {name: _measure(name, results) for name in dict.fromkeys(each.score for each in changes)}
    for (before, after), own in pairs.items():
        title, categories = f"{after} against {before}", [each for each in own if each.category is not None]
        overall = _table_of([each for each in own if each.category is None], measures, title)
        by_category = _table_of(categories, measures, f"{title}, by category") if categories else None
        found.append((title, overall, by_category))
    return found


def _table_of(changes: Sequence[Difference], measures: Mapping[str, Measure], about: str) -> Table:
    flips = ("0\u00a0→\u00a01", "1\u00a0→\u00a00")  # without a line break, on a phone too
    head = ["score", "difference", *flips, "p", "corrected p", "significant", "images", "prompts"]
    rows = []
    for each in changes:
        name = each.score if each.category is None else f"{each.score}, {each.category}"
        size = measures[each.score].difference(each.mean, each.low, each.high)
        pairs = ["" if count is None else f"{count:,}" for count in (each.gained, each.lost)]
        verdict = "yes" if each.significant else "no"
        rows.append([name, size, *pairs, f"{each.p:.2g}", each.p_said, verdict, f"{each.n:,}", f"{each.prompts:,}"])
    return Table(head, rows, about=f"Differences, {about}")


@dataclass(frozen=True)
class Scored:
    """One score of all models."""

    title: str
    chart: Chart
    table: Table


def _score(name: str, labels: Sequence[str], results: Sequence[Result], mark: str = "") -> Scored:
    """Dots with intervals by category, and a table."""
    measure = _measure(name, results)
    own = {k: result["scores"][name] for k, result in enumerate(results) if name in result["scores"]}
    models = {k: labels[k] for k in own}
    rows = {"overall": [score["overall"] for score in own.values()]}
    categories = next(iter(own.values()))["categories"]
    for category in categories if len(categories) > 1 else ():  # a single category would repeat the overall score
        rows[category] = [score["categories"][category] for score in own.values()]
    head = ["", *(cell for model in models.values() for cell in (model, f"{model}, over prompts")), "images", "prompts"]
    body = []
    for label, scores in rows.items():
        cells = [cell for score in scores for cell in (measure.interval(score), measure.over_prompts(score))]
        body.append([label, *cells, f"{scores[0]['n']:,}", f"{scores[0]['prompts']:,}"])
    return Scored(name + mark, _dots(measure, models, rows), Table(head, body, about=f"{name}, by category"))


def _dots(measure: Measure, models: Mapping[int, str], rows: Mapping[str, Sequence[dict[str, Any]]]) -> Chart:
    """A row per category, a dot per model (by its number) with the interval over noise."""
    factor, series = 100 if measure.percent else 1, []
    for k, (number, model) in enumerate(models.items()):
        own = [each[k] for each in rows.values()]
        low, high = ([factor * each[end] if bounded(each) else None for each in own] for end in ("low", "high"))
        said = [f"{label}: {measure.interval(each)}" for label, each in zip(rows, own, strict=True)]
        series.append(Series([factor * each["mean"] for each in own], "", model, low, high, said, colour=number))
    height = 70 + len(rows) * (22 + 10 * len(models))
    suffix, limits = (" %", PERCENT) if measure.percent else ("", None)
    return Chart(f"{measure.label}, 95 % intervals over noise", series, list(rows), limits, suffix, height=height)


def _settings(results: Sequence[Result]) -> list[Table]:
    """Settings that differ between the models, if any do, and those that are the same."""
    models = [result["model"]["name"] for result in results]
    listed = [flat({key: value for key, value in result.items() if key != "scores"}) for result in results]
    same: list[list[str]] = []
    other: list[list[str]] = []
    for key in dict.fromkeys(key for each in listed for key in each):
        values = [each.get(key, "–") for each in listed]
        (same if len(set(values)) == 1 else other).append([key, *values])
    found = [Table(["setting", "value"], [row[:2] for row in same], 2, "Settings of all models")]
    if other:
        found.insert(0, Table(["differing setting", *models], other, 1 + len(models), "Differing settings"))
    return found
