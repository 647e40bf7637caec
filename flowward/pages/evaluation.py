"""The HTML page of an evaluation: scores with intervals, differences, images side by side, and all settings.

The page contains everything it needs (images, charts and Plotly's code), so it works offline.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from typing import Any

from ..evaluation.comparison import Difference, hacking, warnings
from ..evaluation.measurement import Measurement
from ..evaluation.outcome import Measure, bounded
from .page import chart, page, table, text
from .pictures import pictures

COLOURS = ("#2b6cb0", "#d98b2b", "#4a9a74", "#8a6fb5", "#9aa3ad")  # of the models, as in report.html.in
INTERVALS = (
    "The first bracket is the 95&nbsp;% confidence interval over noise: the same prompts with other initial noise. "
    "<i>Over prompts</i> is the 95&nbsp;% confidence interval over other prompts of the same categories."
)
PAIRED = (
    "Models are compared image by image, on the same prompts and the same noise. Brackets are paired 95&nbsp;% "
    "confidence intervals over prompts. p comes from a bootstrap over prompts; for pass/fail scores it is the larger "
    "one of this and McNemar’s exact test. The corrected p (Holm) accounts for several models and categories. A "
    "difference is significant if the corrected p is below 0.05. 0&nbsp;→&nbsp;1 and 1&nbsp;→&nbsp;0 count the images "
    "that changed to pass and to fail."
)


def of(found: Sequence[Measurement], changes: Sequence[Difference], command: str = "") -> str:
    """The page of one or several models, with the differences between them."""
    names = [each.name for each in found]
    title = "Evaluation of " + " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
    short = _short(names)
    found = [replace(each, name=short[each.name]) for each in found]
    changes = [replace(each, before=short[each.before], after=short[each.after]) for each in changes]
    results = [each.summary() for each in found]
    labels = [each.name for each in found]
    scores = list(dict.fromkeys(score for each in found for score in each.scores))
    guards = dict.fromkeys(guard for each in found for guard in each.guards)
    about = [*(f"<b>Possible reward hacking.</b> {text(line)}." for line in hacking(found, changes))]
    about += [f"{text(line[0].upper() + line[1:])}." for line in warnings(found)]
    body = [
        f"<h1>{escape(title)}</h1><p class=quiet>{text(_status(results[0], scores, list(guards)))}</p>",
        "".join(f"<p class=result>{text(line)}</p>" for line in _sentences(found, results, changes)),
        "".join(f"<p class=warning>{line}</p>" for line in about),
        _tiles(labels, results),
        _differences(results, changes) if changes else "",
        f"<h2>{escape(scores[0])}</h2><p class=quiet>{INTERVALS}</p>" + _score(scores[0], labels, results),
        pictures(found) if all(each.pictures for each in found) else "",
        "<h2>Other scores</h2>" * (len(scores) > 1),
        *(
            f"<h3>{escape(name)}{' (guard)' * (name in guards)}</h3>" + _score(name, labels, results, 240)
            for name in scores[1:]
        ),
        "<h2>Settings</h2>" + _settings(results, command),
    ]
    return page(title, "\n".join(body))


def _short(names: Sequence[str]) -> dict[str, str]:
    """Paths without their folders, if the rest is still unique."""
    last = {name: re.sub(r"^\S*/(?=[^/]+$)", "", name) for name in names}
    return last if len(set(last.values())) == len(names) else {name: name for name in names}


def _measure(name: str, results: Sequence[Mapping[str, Any]]) -> Measure:
    return Measure.of(name, [(k, dict(result)) for k, result in enumerate(results)])


def _status(result: Mapping[str, Any], scores: Sequence[str], guards: Sequence[str]) -> str:
    watched = f"; guards: {', '.join(guards)}" if guards else ""
    return (
        f"{result['images']:,} images per model, prompts {result['prompts']}, seed {result['seed']}. "
        f"Headline score: {scores[0]}{watched}."
    )


def _sentences(
    found: Sequence[Measurement], results: Sequence[Mapping[str, Any]], changes: Sequence[Difference]
) -> list[str]:
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


def _tiles(labels: Sequence[str], results: Sequence[Mapping[str, Any]]) -> str:
    """The headline score of every model."""
    measure = _measure(next(iter(results[0]["scores"])), results)
    cells = [
        f"<div class=tile><b>{text(measure.number(score['mean']))}</b>"
        f"<span>{text(labels[k])} {text(measure.bounds(score))}</span></div>"
        for k, score in measure.overall
    ]
    return f"<div class=tiles>{''.join(cells)}</div>"


def _differences(results: Sequence[Mapping[str, Any]], changes: Sequence[Difference]) -> str:
    parts = [f"<h2>Differences</h2><p class=quiet>{PAIRED}</p>"]
    for before, after in dict.fromkeys((each.before, each.after) for each in changes):
        own = [each for each in changes if (each.before, each.after) == (before, after)]
        parts.append(f"<h3>{escape(after)} against {escape(before)}</h3>")
        parts.append(_table_of([each for each in own if each.category is None], results))
        if categories := [each for each in own if each.category is not None]:
            rows = _table_of(categories, results)
            parts.append(f"<details><summary>By category</summary>{rows}</details>")
    return "".join(parts)


def _table_of(changes: Sequence[Difference], results: Sequence[Mapping[str, Any]]) -> str:
    flips = ("0\u00a0→\u00a01", "1\u00a0→\u00a00")  # without a line break, on a phone too
    head = ["score", "difference", *flips, "p", "corrected p", "significant", "images", "prompts"]
    rows = []
    for each in changes:
        name = each.score if each.category is None else f"{each.score}, {each.category}"
        size = _measure(each.score, results).difference(each.mean, each.low, each.high)
        pairs = ["" if count is None else f"{count:,}" for count in (each.gained, each.lost)]
        verdict = "yes" if each.significant else "no"
        rows.append([name, size, *pairs, f"{each.p:.2g}", each.p_said, verdict, f"{each.n:,}", f"{each.prompts:,}"])
    return table(head, rows)


def _score(name: str, labels: Sequence[str], results: Sequence[Mapping[str, Any]], height: int = 340) -> str:
    """One score: a bar chart by category, and a table."""
    measure = _measure(name, results)
    own = {k: result["scores"][name] for k, result in enumerate(results) if name in result["scores"]}
    models = {k: labels[k] for k in own}
    rows = {"overall": [score["overall"] for score in own.values()]}
    categories = next(iter(own.values()))["categories"]
    for category in categories if len(categories) > 1 else ():  # a single category would repeat the overall score
        rows[category] = [score["categories"][category] for score in own.values()]
    head = ["", *(cell for model in models.values() for cell in (model, "over prompts")), "images", "prompts"]
    body = []
    for label, scores in rows.items():
        cells = [cell for score in scores for cell in (measure.interval(score), measure.over_prompts(score))]
        body.append([label, *cells, f"{scores[0]['n']:,}", f"{scores[0]['prompts']:,}"])
    return _bars(measure, models, rows, height) + table(head, body)


def _bars(
    measure: Measure, models: Mapping[int, str], rows: Mapping[str, Sequence[dict[str, Any]]], height: int
) -> str:
    """A bar per category and model (by its number), with the interval over noise."""
    factor, traces = 100 if measure.percent else 1, []
    for k, (number, model) in enumerate(models.items()):
        own = [each[k] for each in rows.values()]
        reach = [[factor * abs(score[end] - score["mean"]) if bounded(score) else 0 for score in own]
                 for end in ("high", "low")]  # fmt: skip
        bar = {
            "type": "bar",
            "x": [label.replace("_", " ") for label in rows],
            "y": [factor * score["mean"] for score in own],
            "name": escape(model),
            "marker": {"color": COLOURS[min(number, len(COLOURS) - 1)]},
            "error_y": {
                "array": reach[0],
                "arrayminus": reach[1],
                "thickness": 1.2,
                "width": 3,
                "color": "#7d8590",
            },
            "customdata": [measure.interval(score) for score in own],
            "hovertemplate": "%{x}: %{customdata}<extra></extra>",
        }
        traces.append(bar)
    return chart(traces, ticksuffix=" %" if measure.percent else "", height=height)


def _settings(results: Sequence[Mapping[str, Any]], command: str) -> str:
    models = [result["model"]["name"] for result in results]
    flat = [_flat({key: value for key, value in result.items() if key != "scores"}) for result in results]
    same: list[list[str]] = []
    other: list[list[str]] = []
    for key in dict.fromkeys(key for each in flat for key in each):
        values = [each.get(key, "–") for each in flat]
        (same if len(set(values)) == 1 else other).append([key, *values])
    parts = [table(["setting", "value"], [row[:2] for row in same], left=2)]
    if other:
        parts.insert(0, table(["differing setting", *models], other, left=1 + len(models)))
    if command:
        parts.append(f"<h3>Command</h3><div class=copyable><pre>{escape(command)}</pre><button>copy</button></div>")
    return "".join(parts)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested settings as one flat list, with keys such as rewards.ocr.model."""
    found: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{before}{key}.")
        elif isinstance(value, list):
            found[f"{before}{key}"] = ", ".join(_plain(each) for each in value) or "none"
        else:
            found[f"{before}{key}"] = _plain(value)
    return found


def _plain(value: Any) -> str:
    return "none" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
