"""The report of a run as one HTML page: result with intervals, samples, scores, metrics and timings.

The page contains everything it needs (images, charts and their code), so it works offline. What differs between runs
that train on images and on episodes is a value of kinds.py.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from ..evaluation import outcome
from ..evaluation.outcome import Evaluations, Measure, counted, when
from ..system import strict_json
from ..system.paths import short_code
from ..training.lines import NO_PARTS, Warnings, spans
from ..training.record import Record
from . import curves, kinds
from .curves import Run
from .kinds import Kind
from .page import Line, duration, is_number, render
from .parts import Axis, Chart, Series, Table, Tile

# always visible; the rest can be unfolded
WATCHED = ("zero_variance", "distance", "old_nats", "kl", "gradient_norm", "latent_rms", "answer_tokens")
BARE = ("iteration", *(kind.nouns.samples for kind in kinds.KINDS.values()))  # numbers of a line that need no curve
REWARDS = ("reward", "correlation")  # the section of the training reward shows these


def write(folder: Path) -> Path:
    """Write report.html into a run folder, finished or not, and return its path.

    Raises:
        ValueError: this is not a run folder, or its config.yaml cannot be read, or is of an unknown kind.
        OSError: the page cannot be written; an existing one is unchanged.
    """
    run = Record.open(folder)
    config, lines, summary = run.config(), run.lines(), run.summary()
    kind = kinds.of(config)
    curve, evaluations = Run.of(lines, samples=kind.nouns.samples), outcome.of(lines)
    own = kind.sections(run, lines, curve)
    told = [*outcome.remarks(lines), *run.changed_inputs()]
    html = render(
        kind.template,
        curve.axes,
        kind=kind,
        title=title(config),
        status=status(lines, summary, config),
        version=_version(summary),
        result=outcome.sentence(evaluations),
        warnings=[f"{line[:1].upper()}{line[1:]}." for line in told],
        figures=_key_figures(lines, curve.trained, evaluations, kind),
        settings=_settings(evaluations),
        scores=_scores(curve, evaluations, kind),
        reward=_reward(curve),
        health=_health(lines, curve, kind.elsewhere),
        time=_timings(lines),
        repeat=_repeat(folder, config, summary.get("command", ""), kind.command),
        **own,
    )
    run.write_text("report.html", html)
    return folder / "report.html"


def write_loss_curve(folder: Path) -> Path:
    """Write loss.html, the loss curve of every pretraining stage in log.jsonl, and return its path.

    Raises:
        ValueError: the folder has no log.jsonl.
    """
    if not (folder / "log.jsonl").is_file():
        raise ValueError(f"{folder} is not a pretraining folder (it has no log.jsonl)")
    lines = [strict_json.loads(line) for line in (folder / "log.jsonl").read_text("utf-8").splitlines()]
    stages: dict[str, list[Line]] = {}
    for line in lines:
        stages.setdefault(line["stage"], []).append(line)
    axes = [Axis(name, [line["step"] for line in own]) for name, own in stages.items()]
    charts = [
        Chart(f"Loss of the {name}", [Series([line["loss"] for line in own], name, key=f"{name} loss")],
              smooth=True, height=300, x="step")
        for name, own in stages.items()
    ]  # fmt: skip
    Record(folder).write_text("loss.html", render("loss.html.j2", axes, title="Pretraining", curves=charts))
    return folder / "loss.html"


def title(config: dict[str, Any]) -> str:
    """advantageflow on scenes, reward scenes"""
    algorithm, reward = config.get("algorithm"), config.get("reward") or []
    name = algorithm.get("name") if isinstance(algorithm, dict) else algorithm
    model = config.get("model") or "an unnamed model"
    said = f"{name or 'A run'} on {Path(model).name if Path(model).is_absolute() else model}"
    rewards = [reward] if isinstance(reward, str) else reward
    return said + (f", reward {' + '.join(short_code(str(each)) for each in rewards)}" if rewards else "")


def status(lines: list[Line], summary: dict[str, Any], config: dict[str, Any]) -> str:
    """Finished after 40 iterations."""
    done, planned = lines[-1]["iteration"] if lines else 0, (config.get("run") or {}).get("iterations")
    if lines and not summary and done == planned:  # runs from Python have no summary.json
        return f"Finished after {counted(done, 'iteration')}."
    if not summary or done > int(summary.get("iterations") or done):  # a resumed run still has its older summary
        return f"Not finished (still running or interrupted): {counted(done, 'iteration')} so far."
    return f"{'Finished' if summary.get('finished') else 'Stopped early,'} after {counted(done, 'iteration')}."


def _version(summary: dict[str, Any]) -> str:
    version = f"flowward {summary['version']}" if "version" in summary else ""
    return ", ".join(str(part) for part in (version, summary.get("machine")) if part)


def _key_figures(lines: list[Line], trained: Any, evaluations: Evaluations, kind: Kind) -> list[Tile]:
    tiles = []
    if evaluations:
        measure = Measure.every(evaluations)[0]
        first, last = measure.overall[0], measure.overall[-1]
        for iteration, score in [first, last][: len(measure.overall)]:
            said = f"{measure.label} {when(iteration)} {measure.bounds(score)}"
            tiles.append(Tile(measure.number(score["mean"]), said))
        if last != first:
            tiles.append(Tile(measure.change(first[1], last[1]), "change"))
    if trained:
        samples = kind.nouns.samples
        tiles.append(Tile(f"{trained[-1].get(samples, 0):,}", f"training {samples}"))
    total = sum(_seconds(line, "total") for line in lines)
    if trained and total:
        each = median(_seconds(line, "total") - _seconds(line, "evaluate") for line in trained)
        tiles.append(Tile(duration(total), "total time, including evaluations"))
        tiles.append(Tile(f"{each:.3g} s", "per iteration (median, without evaluations)"))
    return tiles


def _settings(evaluations: Evaluations) -> list[str]:
    """The settings of all evaluations: one line for each distinct set."""
    groups: dict[str, list[int]] = {}
    for iteration, evaluation in evaluations:
        groups.setdefault(outcome.settings(evaluation), []).append(iteration)
    return [f"Evaluation settings, iteration{'s' * (len(at) > 1)} {spans(at)}: {used}." for used, at in groups.items()]


def _scores(run: Run, evaluations: Evaluations, kind: Kind) -> dict[str, Any]:
    """The headline over time, by category, and the other scores; charts only if there are two evaluations."""
    if not evaluations:
        return {}
    measure, *others = Measure.every(evaluations)
    beside, words = kind.beside(run, measure, others), kind.nouns
    scores = measure.overall
    compared = [when(scores[-1][0]), "change", "intervals overlap"] if len(scores) > 1 else []
    head = ["", when(scores[0][0]), *compared, words.samples]
    name = " and ".join(each.label for _, each in beside)
    name = name[0].upper() + name[1:]
    rows = [
        each.row(", ".join(filter(None, (category or "overall", own.name))), found)
        for category in ("", *measure.categories)
        for own, each in beside
        if (found := each.categories.get(category, []) if category else each.overall)
    ]
    others = [other for other in others if other not in [each for _, each in beside]]
    values: dict[str, Any] = {
        "name": name,
        "table": Table(head, rows, about=f"{name}, by category"),
        "others": Table(head, [other.row(other.name, other.overall) for other in others], about="Other scores"),
        "charts": [],
        "other_charts": [],
        "main": None,
    }
    if compared:
        values["main"] = curves.score(beside, f"{name} over all {words.prompts}", height=320)
        values["charts"] = [curves.score(beside, category, category) for category in measure.categories]
        values["other_charts"] = [curves.score([(run, other)], other.name) for other in others]
    return values


def _reward(run: Run) -> dict[str, Any]:
    """The mean reward of each iteration, and each reward and correlation of it."""
    if not any(is_number(line.get("reward")) for line in run.trained):
        return {}
    names = [name for name in run.trained[-1] if "/" in name and name.partition("/")[0] in REWARDS]
    return {"main": curves.metric([run], "reward", height=320), "parts": curves.explained([run], names)}


def _health(lines: list[Line], run: Run, elsewhere: Sequence[str]) -> dict[str, Any]:
    """All warnings, before and during training, and the curves of the metrics that no other section shows.

    Args:
        elsewhere: keys that other sections show, up to their slash.
    """
    seen = Warnings()
    seen.add(lines)
    recorded: dict[str, None] = {}
    for line in run.trained:
        recorded |= {key: None for key, value in line.items() if key not in recorded and is_number(value)}
    others = {*REWARDS, *elsewhere}
    shown = (*WATCHED, *BARE, *(key for key in recorded if key.partition("/")[0] in others))
    rest = [key for key in recorded if key not in shown]
    groups = {
        "All other metrics": [key for key in rest if "@" not in key],
        "Metrics of each rollout step": [key for key in rest if "@" in key],
    }
    return {
        "trained": bool(run.trained),
        "warnings": Table(
            ["warning, with its latest values", "count", "iterations"], seen.rows(), 3, "Health warnings"
        ),
        "watched": curves.explained([run], [key for key in WATCHED if key in recorded]),
        "groups": {name: curves.explained([run], keys) for name, keys in groups.items() if keys},
    }


def _timings(lines: list[Line]) -> list[tuple[str, float, str]]:
    """Parts of the total time: name, share, and what the legend says."""
    every = dict.fromkeys(name for line in reversed(lines) for name in line.get("seconds") or {})
    names = [name for name in every if name not in NO_PARTS]
    parts = {name: sum(_seconds(line, name) for line in lines) for name in names}
    total = max(sum(_seconds(line, "total") for line in lines), sum(parts.values()))
    if total <= 0:
        return []
    if (other := total - sum(parts.values())) > 0.005 * total:
        parts["other"] = other
    return [(name, own / total, f"{name} {duration(own)} ({own / total:.0%})") for name, own in parts.items()]


def _seconds(line: Line, part: str) -> float:
    return float((line.get("seconds") or {}).get(part, 0.0))


def _repeat(folder: Path, config: dict[str, Any], command: str, again: Sequence[str]) -> dict[str, Any]:
    """The commands; none if parts of the run exist only in Python code."""
    parts: tuple[str, ...] = ("reward", "prompts")
    own = [name for name in parts if name in config and config[name] is None]
    own += ["algorithm"] if isinstance(config.get("algorithm"), str) else []
    commands = [shlex.join(["flowward", *again, "--config", str(folder / "config.yaml")])]
    if command and "--resume" not in command:  # resuming a run does not reproduce it
        commands.insert(0, command)
    settings = (folder / "config.yaml").read_text("utf-8")
    return {"own": " and ".join(own), "commands": [] if own else commands, "config": settings}
