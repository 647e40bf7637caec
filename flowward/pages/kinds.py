"""What pages say and show about a kind of run: a table, by the `kind` in config.yaml."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..evaluation.outcome import NOUNS, Measure, Nouns
from ..system.errors import unknown
from ..training.record import Record
from . import agents, behaviour, samples
from .curves import Run
from .page import Line

DEFAULT = "images"  # runs without a kind in their config.yaml train on images


@dataclass(frozen=True)
class Kind:
    """The words of a kind of run, and what its report has that others have not."""

    nouns: Nouns  # `samples` is also the key of their number in metrics.jsonl
    intervals: str  # what 95 % intervals are over
    beyond: str  # what they do not cover, beside other training seeds
    command: tuple[str, ...]  # that trains, after `flowward`
    template: str
    contents: tuple[tuple[str, str], ...]  # id and title of each section of the report
    sections: Callable[[Record, Sequence[Line], Run], dict[str, Any]]  # values of the template, for its own sections
    beside: Callable[[Run, Measure, Sequence[Measure]], list[tuple[Run, Measure]]]  # scores in the headline's chart
    elsewhere: tuple[str, ...] = ()  # metrics that its own sections show, up to their slash
    pictures: bool = False  # samples can be seen
    gallery: str = "Sample images"  # title of the section that shows them


def headline_alone(run: Run, measure: Measure, others: Sequence[Measure]) -> list[tuple[Run, Measure]]:
    return [(run, measure)]


def _pictures(run: Record, lines: Sequence[Line], curve: Run) -> dict[str, Any]:
    return {"pictures": samples.of(run.path)}


FLOW = (  # sections of the report of a flow model
    ("result", "Result"),
    ("samples", "Samples"),
    ("scores", "Scores"),
    ("reward", "Training reward"),
    ("health", "Health"),
    ("time", "Time"),
    ("repeat", "Reproduce"),
)


def _flow(kind: str, gallery: str) -> Kind:
    """What a flow model makes; `gallery` is the heading of its samples."""
    return Kind(
        NOUNS[kind],
        f"the initial noise of the {kind}",
        "new prompts",
        ("train",),
        "report.html.j2",
        FLOW,
        _pictures,
        headline_alone,
        pictures=True,
        gallery=gallery,
    )


KINDS: Mapping[str, Kind] = {
    DEFAULT: _flow("images", "Sample images"),
    "samples": _flow("samples", "Samples"),
    "sounds": _flow("sounds", "Sample sounds"),
    "agent": Kind(
        NOUNS["episodes"],
        "the measured episodes",
        "questions of another kind",
        ("agent", "train"),
        "agent.html.j2",
        (
            ("result", "Result"),
            ("scores", "Success"),
            ("samples", "Episodes"),
            ("tools", "Tools"),
            ("turns", "Turns"),
            ("reward", "Training reward"),
            ("health", "Health"),
            ("time", "Time"),
            ("repeat", "Reproduce"),
        ),
        agents.sections,
        agents.sampled_and_greedy,
        behaviour.SHOWN,
    ),
}


def of(config: Mapping[str, Any]) -> Kind:
    """The kind of a run with these settings.

    Raises:
        ValueError: there is no such kind.
    """
    name = config.get("kind") or DEFAULT
    if name not in KINDS:
        raise ValueError(unknown("kind of run", str(name), KINDS))
    return KINDS[name]
