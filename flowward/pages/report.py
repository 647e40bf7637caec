"""The report of a run as one HTML page: result with intervals, sample images, scores, metrics and timings.

The page contains everything it needs (images, charts and Plotly's code), so it works offline.
"""

from __future__ import annotations

import base64
import shlex
from html import escape
from pathlib import Path
from statistics import median
from typing import Any

from ..evaluation import outcome
from ..evaluation.outcome import Evaluations, Measure, counted, when, without_figures
from ..system import strict_json
from ..system.paths import short_code
from ..training import glossary
from ..training.lines import spans
from ..training.record import Record
from .page import Line, duration, is_number, metric_chart, page, score_chart, small, smoothed_chart, table, text

MOST_GRIDS = 25  # in one page; of a longer run, evenly spaced grids are shown
WATCHED = ("zero_variance", "distance", "gradient_norm", "latent_rms")  # always visible; the rest can be unfolded
REWARDS = ("reward", "correlation")  # the section of the training reward shows these


def write(folder: Path) -> Path:
    """Write report.html into a run folder, finished or not, and return its path.

    Raises:
        ValueError: this is not a run folder, or its config.yaml cannot be read.
        OSError: the page cannot be written; an existing one is unchanged.
    """
    run = Record.open(folder)
    config, lines = run.config(), run.lines()
    title, planned = _title(config), (config.get("run") or {}).get("iterations")
    summary = run.summary()
    trained = [line for line in lines if line["iteration"] > 0]
    evaluations = outcome.of(lines)
    body = [
        f"<h1>{escape(title)}</h1><p class=quiet>{escape(_status(lines, summary, planned))}</p>",
        f"<p class=result>{text(outcome.sentence(evaluations))}</p>",
        "".join(
            f"<p class=warning>{text(line[:1].upper() + line[1:])}.</p>"
            for line in [*outcome.remarks(lines), *run.changed_inputs()]
        ),
        _key_figures(lines, trained, evaluations) + _settings(evaluations),
        "<h2>Sample images</h2>" + _pictures(folder),
        _scores(evaluations),
        "<h2>Training reward</h2>" + _reward(trained),
        "<h2>Health</h2>" + _health(lines, trained),
        "<h2>Time</h2>" + _timings(lines),
        "<h2>Reproduce this run</h2>" + _repeat(folder, config, summary.get("command", "")),
    ]
    run.write_text("report.html", page(title, "\n".join(body)))
    return folder / "report.html"


def write_loss_curve(folder: Path) -> Path:
    """Write loss.html, the loss curve of every pretraining stage in log.jsonl, and return its path.

    Raises:
        ValueError: the folder has no log.jsonl.
    """
    if not (folder / "log.jsonl").is_file():
        raise ValueError(f"{folder} is not a pretraining folder (it has no log.jsonl)")
    lines = [strict_json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    stages = {line["stage"]: [other for other in lines if other["stage"] == line["stage"]] for line in lines}
    charts = [
        metric_chart(mine, "loss", f"Loss of the {name}", "step", 300, type="log") for name, mine in stages.items()
    ]
    Record(folder).write_text("loss.html", page("Pretraining", "<h1>Pretraining</h1>" + "".join(charts)))
    return folder / "loss.html"


def _title(config: dict[str, Any]) -> str:
    algorithm, reward = config.get("algorithm"), config.get("reward") or []
    name = algorithm.get("name") if isinstance(algorithm, dict) else algorithm
    model = config.get("model") or "an unnamed model"
    title = f"{name or 'A run'} on {Path(model).name if Path(model).is_absolute() else model}"
    rewards = [reward] if isinstance(reward, str) else reward
    return title + (f", reward {' + '.join(short_code(str(each)) for each in rewards)}" if rewards else "")


def _status(lines: list[Line], summary: dict[str, Any], planned: int | None) -> str:
    done = lines[-1]["iteration"] if lines else 0
    if lines and not summary and done == planned:  # runs from Python have no summary.json
        state = f"Finished after {counted(done, 'iteration')}."
    elif not summary or done > int(summary.get("iterations") or done):  # a resumed run still has its older summary
        state = f"Not finished (still running or interrupted): {counted(done, 'iteration')} so far."
    else:
        state = f"{'Finished' if summary.get('finished') else 'Stopped early,'} after {counted(done, 'iteration')}."
    version = f"flowward {summary['version']}" if "version" in summary else ""
    return " ".join([state, ", ".join(str(part) for part in (version, summary.get("machine")) if part)])


def _key_figures(lines: list[Line], trained: list[Line], evaluations: Evaluations) -> str:
    tiles = []
    if evaluations:
        measure = Measure.every(evaluations)[0]
        first, last = measure.overall[0], measure.overall[-1]
        for iteration, score in [first, last][: len(measure.overall)]:
            said = f"{measure.label} {when(iteration)} {measure.bounds(score)}"
            tiles.append((measure.number(score["mean"]), said))
        if last != first:
            tiles.append((measure.change(first[1], last[1]), "change"))
    if trained:
        tiles.append((f"{trained[-1].get('images', 0):,}", "training images"))
    total = sum(_seconds(line, "total") for line in lines)
    if trained and total:
        each = median(_seconds(line, "total") - _seconds(line, "evaluate") for line in trained)
        tiles.append((duration(total), "total time, including evaluations"))
        tiles.append((f"{each:.3g} s", "per iteration (median, without evaluations)"))
    cells = "".join(f"<div class=tile><b>{text(number)}</b><span>{text(said)}</span></div>" for number, said in tiles)
    return f"<div class=tiles>{cells}</div>" if cells else ""


def _settings(evaluations: Evaluations) -> str:
    """The settings of all evaluations: one line for each distinct set."""
    groups: dict[str, list[int]] = {}
    for iteration, evaluation in evaluations:
        groups.setdefault(outcome.settings(evaluation), []).append(iteration)
    return "".join(
        f"<p class=quiet>Evaluation settings, iteration{'s' * (len(at) > 1)} {spans(at)}: {text(used)}.</p>"
        for used, at in groups.items()
    )


def _pictures(folder: Path) -> str:
    paths = Record(folder).samples()
    if not paths:
        return "<p>No sample images have been saved.</p>"
    if len(paths) > MOST_GRIDS:
        paths = [paths[round(k * (len(paths) - 1) / (MOST_GRIDS - 1))] for k in range(MOST_GRIDS)]
    first, *later = paths
    figures = [f"<figure><figcaption>{_said(first)}</figcaption>{_image(first)}</figure>"]
    if later:
        slider = f"<input type=range min=0 max={len(later) - 1} value={len(later) - 1} aria-label=iteration>"
        control = (
            f"<button id=earlier aria-label=earlier>‹</button>{slider}<button id=later aria-label=later>›</button>"
        )
        caption = f"<span id=shown>{_said(later[-1])}</span>{control if len(later) > 1 else ''}"
        grids = [_image(path, f"data-said='{_said(path)}' {'hidden' * (path != later[-1])}") for path in later]
        figures.append(f"<figure><figcaption>{caption}</figcaption>{''.join(grids)}</figure>")
    note = "All grids use the same prompts and the same noise. Click a grid to enlarge it."
    return f"<p class=quiet>{note}</p><div class=grids>{''.join(figures)}</div>"


def _said(path: Path) -> str:
    return when(int(path.stem)).capitalize()


def _image(path: Path, attributes: str = "") -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="samples: {_said(path)}" {attributes} src="data:image/png;base64,{data}">'


def _scores(evaluations: Evaluations) -> str:
    if not evaluations:
        return "<h2>Scores</h2><p>No evaluation has been recorded.</p>"
    measure, *others = Measure.every(evaluations)
    scores = measure.overall
    compared = [when(scores[-1][0]), "change", "intervals overlap"] if len(scores) > 1 else []
    head = ["", when(scores[0][0]), *compared, "images"]
    name = measure.label[0].upper() + measure.label[1:]
    parts = [
        f"<h2>{escape(name)}</h2>",
        "<p class=quiet>Brackets and bands are 95&nbsp;% confidence intervals over the initial noise of the images. "
        "They do not cover new prompts or other training seeds.</p>",
        _score_charts(measure, f"{name} over all prompts") if compared else "",
        table(head, [measure.row(label, own) for label, own in [("overall", scores), *measure.categories.items()]]),
    ]
    if others:
        parts += ["<h3>Other scores</h3>", table(head, [other.row(other.name, other.overall) for other in others])]
    if others and compared:
        parts.append(small(score_chart(other, other.overall, other.name, height=200) for other in others))
    return "".join(parts)


def _score_charts(measure: Measure, title: str) -> str:
    """One large chart, and a small one per category. The small ones share their y range for comparison."""
    scores = [score for own in measure.categories.values() for _, score in own]
    ends = [score[end] for score in scores for end in (("low", "high") if outcome.bounded(score) else ("mean",))]
    limits = (min(ends), max(ends)) if ends else None
    categories = [
        score_chart(measure, own, name, height=200, limits=limits) for name, own in measure.categories.items()
    ]
    return score_chart(measure, measure.overall, title, "iteration") + small(categories)


def _reward(trained: list[Line]) -> str:
    lines = [line for line in trained if is_number(line.get("reward"))]
    if not lines:
        return "<p>No training iteration has been recorded.</p>"
    note = "Mean reward of the training images of each iteration. It should rise, with noise between iterations."
    names = [name for name in lines[-1] if "/" in name and name.partition("/")[0] in REWARDS]
    return f"<p class=quiet>{note}</p>{smoothed_chart(lines, 'reward')}{_metrics(lines, names)}"


def _metrics(lines: list[Line], keys: list[str]) -> str:
    """Small charts, each with its meaning and its healthy range below it."""
    return small(_metric(lines, key) for key in keys) if keys else ""


def _metric(lines: list[Line], key: str) -> str:
    metric, step, name = glossary.find(key), key.partition("@")[2], key.partition("/")[2]
    if not metric:  # of the user's own algorithm
        return f"<div>{metric_chart(lines, key, key)}</div>"
    title = name or f"{metric.title}, step {step}" * bool(step) or metric.title
    note = f"<code>{escape(key)}</code>"
    if not step:
        note += f": {escape(metric.line)}. <b>Healthy:</b> {escape(metric.healthy)}."
    return f"<div>{metric_chart(lines, key, title)}<p class=note>{note}</p></div>"


def _health(lines: list[Line], trained: list[Line]) -> str:
    """All warnings, before and during training, and the curves of the metrics."""
    said: dict[str, tuple[str, list[int]]] = {}
    for line in lines:
        for message in line.get("health") or []:
            kind = without_figures(message)
            said[kind] = (message, [*said.get(kind, ("", []))[1], line["iteration"]])
    rows = [[message, f"{len(at):,}", spans(at)] for message, at in said.values()]
    warnings = table(["warning, with its latest values", "count", "iterations"], rows, left=3)
    recorded = dict.fromkeys(key for line in trained for key, value in line.items() if is_number(value))
    shown = (*WATCHED, "iteration", "images", *(key for key in recorded if key.partition("/")[0] in REWARDS))
    rest = [key for key in recorded if key not in shown]
    groups = {"All other metrics": [key for key in rest if "@" not in key]}
    groups["Metrics of each rollout step"] = [key for key in rest if "@" in key]
    nothing = "No problems found." if trained else "No training iteration has been recorded."
    parts = [f"<div class=log>{warnings}</div>" if rows else f"<p>{nothing}</p>"]
    parts.append(_metrics(trained, [key for key in WATCHED if key in recorded]))
    for title, keys in groups.items():
        if keys:
            parts.append(f"<details><summary>{title}</summary>{_metrics(trained, keys)}</details>")
    return "".join(parts)


def _timings(lines: list[Line]) -> str:
    every = dict.fromkeys(name for line in reversed(lines) for name in line.get("seconds") or {})
    names = [name for name in every if name not in ("total", "cpu_share")]
    parts = {name: sum(_seconds(line, name) for line in lines) for name in names}
    total = max(sum(_seconds(line, "total") for line in lines), sum(parts.values()))
    if total <= 0:
        return "<p>No timings have been recorded.</p>"
    if (other := total - sum(parts.values())) > 0.005 * total:
        parts["other"] = other
    bar = "".join(f"<i class=part-{min(k, 4)} style='flex: {own:.6f}'></i>" for k, own in enumerate(parts.values()))
    legend = "".join(
        f"<span><i class=part-{min(k, 4)}></i>{text(f'{name} {duration(own)} ({own / total:.0%})')}</span>"
        for k, (name, own) in enumerate(parts.items())
    )
    return f"<div class=stack>{bar}</div><div class=legend>{legend}</div>"


def _seconds(line: Line, part: str) -> float:
    return float((line.get("seconds") or {}).get(part, 0.0))


def _repeat(folder: Path, config: dict[str, Any], command: str) -> str:
    """The commands; none if parts of the run exist only in Python code."""
    parts: tuple[str, ...] = ("reward", "prompts")
    own = [name for name in parts if name in config and config[name] is None]
    own += ["algorithm"] if isinstance(config.get("algorithm"), str) else []
    settings = escape((folder / "config.yaml").read_text("utf-8"))
    every = f"<details><summary>All settings (config.yaml)</summary><pre>{settings}</pre></details>"
    if own:
        return (
            f"<p>No command can reproduce this run: it was started from Python, and config.yaml cannot store its own "
            f"{' and '.join(own)}.</p>{every}"
        )
    commands = [shlex.join(["flowward", "train", "--config", str(folder / "config.yaml")])]
    if command and "--resume" not in command:  # resuming a run does not reproduce it
        commands.insert(0, command)
    blocks = [f"<div class=copyable><pre>{escape(words)}</pre><button>copy</button></div>" for words in commands]
    return "<p>Or with the saved settings of this run:</p>".join(blocks) + every
