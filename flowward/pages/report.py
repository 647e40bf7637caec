"""A run folder becomes one page: what changed, by how much, how sure that is, and how the run went.

The page carries all it needs (pictures, charts and the code that draws them), so it opens anywhere, without a network.
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
from ..training.record import Record
from .page import Line, duration, is_number, metric_chart, page, score_chart, small, smoothed_chart, spans, table, text

MOST_GRIDS = 25  # in one page; a longer run is shown at even distances
WATCHED = {
    "zero_variance": "Share of groups with equal rewards",
    "distance": "Distance from the old policy",
    "gradient_norm": "Gradient norm, before clipping",
    "latent_rms": "Size (RMS) of finished latents",
}


def write(folder: Path) -> Path:
    """Write report.html into a run folder, from whatever it holds so far, and return its path.

    Raises:
        ValueError: it is not a run folder, or its config.yaml cannot be read.
        OSError: the page could not be written; an older one is untouched.
    """
    run = Record.open(folder)
    config, lines = run.config(), run.lines()
    title, planned = _title(config), (config.get("run") or {}).get("iterations")
    summary = strict_json.loads(path.read_text("utf-8")) if (path := folder / "summary.json").is_file() else {}
    trained = [line for line in lines if line["iteration"] > 0]
    evaluations = outcome.of(lines)
    body = [
        f"<h1>{escape(title)}</h1><p class=quiet>{escape(_status(lines, summary, planned))}</p>",
        f"<p class=result>{text(outcome.sentence(evaluations))}</p>",
        "".join(f"<p class=warning>{text(line[0].upper() + line[1:])}.</p>" for line in outcome.remarks(lines)),
        _key_figures(lines, trained, evaluations) + _settings(evaluations),
        "<h2>Pictures</h2>" + _pictures(folder),
        _scores(evaluations),
        "<h2>Reward in training</h2>" + _reward(trained),
        "<h2>Health</h2>" + _health(lines, trained),
        "<h2>Time</h2>" + _timings(lines),
        "<h2>Repeat this run</h2>" + _repeat(folder, config, summary.get("command", "")),
    ]
    run.write_text("report.html", page(title, "\n".join(body)))
    return folder / "report.html"


def write_loss_curve(folder: Path) -> Path:
    """Write loss.html, the loss of every stage in a pretraining folder's log.jsonl, and return its path.

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
    title = f"{name or 'A run'} on {config.get('model', 'an unnamed model')}"
    rewards = [reward] if isinstance(reward, str) else reward
    return title + (f", rewarded by {' + '.join(map(str, rewards))}" if rewards else "")


def _status(lines: list[Line], summary: dict[str, Any], planned: int | None) -> str:
    done = lines[-1]["iteration"] if lines else 0
    if lines and not summary and done == planned:  # from Python, which writes none
        state = f"Finished after {counted(done, 'iteration')}."
    elif not summary or done > int(summary.get("iterations") or done):  # a resumed run leaves its older summary behind
        state = f"Not finished: still going, or interrupted. {counted(done, 'iteration')} so far."
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
            tiles.append((measure.change(first[1], last[1]), "change between the two"))
    if trained:
        tiles.append((f"{trained[-1].get('images', 0):,}", "images seen in training"))
    total = sum(_seconds(line, "total") for line in lines)
    if trained and total:
        each = median(_seconds(line, "total") - _seconds(line, "evaluate") for line in trained)
        tiles.append((duration(total), "wall time, evaluations included"))
        tiles.append((f"{each:.3g} s", "per iteration (median, without evaluation)"))
    cells = "".join(f"<div class=tile><b>{text(number)}</b><span>{text(said)}</span></div>" for number, said in tiles)
    return f"<div class=tiles>{cells}</div>" if cells else ""


def _settings(evaluations: Evaluations) -> str:
    """What every evaluation was made with; those that agree share a line."""
    groups: dict[str, list[int]] = {}
    for iteration, evaluation in evaluations:
        groups.setdefault(outcome.settings(evaluation), []).append(iteration)
    return "".join(
        f"<p class=quiet>Measured at iteration{'s' * (len(at) > 1)} {spans(at)} with {text(used)}.</p>"
        for used, at in groups.items()
    )


def _pictures(folder: Path) -> str:
    paths = Record(folder).samples()
    if not paths:
        return "<p>No sample pictures have been saved.</p>"
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
    note = "The same prompts and the same noise each time. Click a grid to see it in full size."
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
        "<p class=quiet>Brackets and bands are 95 % intervals over the noise that pictures start from. They say "
        "nothing of other prompts, or of another training seed.</p>",
        _score_charts(measure, f"{name} over all prompts") if compared else "",
        table(head, [measure.row(label, own) for label, own in [("overall", scores), *measure.categories.items()]]),
    ]
    if others:
        parts += ["<h3>Other scores</h3>", table(head, [other.row(other.name, other.overall) for other in others])]
    if others and compared:
        parts.append(small(score_chart(other, other.overall, other.name, height=200) for other in others))
    return "".join(parts) + _settings(evaluations)


def _score_charts(measure: Measure, title: str) -> str:
    """One large chart, and a small one per category; those have the same axis, so that they can be compared."""
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
    told = "Mean over the images that were trained on."
    names = [name for name in lines[-1] if name.startswith(("reward/", "correlation/"))]
    if names:
        told += " Below, each reward, and how each two go together among images of a prompt (1 to -1)."
    each = [metric_chart(lines, name, name.partition("/")[2].replace("/", " with ")) for name in names]
    return f"<p class=quiet>{told}</p>{smoothed_chart(lines, 'reward')}{small(each) if each else ''}"


def _health(lines: list[Line], trained: list[Line]) -> str:
    """What was said of the run as a whole (before training) and of its iterations, and curves of the latter."""
    said: dict[str, tuple[str, list[int]]] = {}
    for line in lines:
        for message in line.get("health") or []:
            kind = without_figures(message)
            said[kind] = (message, [*said.get(kind, ("", []))[1], line["iteration"]])
    rows = [[message, f"{len(at):,}", spans(at)] for message, at in said.values()]
    warnings = table(["message, with its latest figures", "times", "at iterations"], rows, left=3)
    recorded = dict.fromkeys(key for line in trained for key, value in line.items() if is_number(value))
    rest = [key for key in recorded if key not in (*WATCHED, "iteration", "images", "reward")]
    nothing = "Nothing tripped." if trained else "No training iteration has been recorded."
    parts = [f"<div class=log>{warnings}</div>" if rows else f"<p>{nothing}</p>"]
    parts.append(small(metric_chart(trained, key, title) for key, title in WATCHED.items() if key in recorded))
    if rest:
        charts = small(metric_chart(trained, key, key) for key in rest)
        parts.append(f"<details><summary>Everything else that was recorded</summary>{charts}</details>")
    return "".join(parts)


def _timings(lines: list[Line]) -> str:
    names = dict.fromkeys(name for line in reversed(lines) for name in line.get("seconds") or {} if name != "total")
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
    """The commands; none where parts of the run are in somebody's Python alone."""
    parts: tuple[str, ...] = ("reward", "prompts")
    own = [name for name in parts if name in config and config[name] is None]
    own += ["algorithm"] if isinstance(config.get("algorithm"), str) else []
    settings = escape((folder / "config.yaml").read_text("utf-8"))
    every = f"<details><summary>Every setting (config.yaml)</summary><pre>{settings}</pre></details>"
    if own:
        return (
            f"<p>It was started from Python, with {' and '.join(own)} of its own, which is not written down.</p>{every}"
        )
    commands = [shlex.join(["flowward", "train", "--config", str(folder / "config.yaml")])]
    if command and "--resume" not in command:  # going on with a run is not repeating it
        commands.insert(0, command)
    blocks = [f"<div class=copyable><pre>{escape(words)}</pre><button>copy</button></div>" for words in commands]
    return "<p>or, with every setting as this run had it:</p>".join(blocks) + every
