"""The page of a front: the scores of a palette at a grid of mixtures, as a picture and as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from ..evaluation.outcome import Measure, Score
from .page import render
from .parts import Table, Tile
from .settings import flat

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 640, 420, 76, 56, 28, 24  # of a picture and its margins, in pixels
TICKS = 5  # numbers along an axis, at most


@dataclass(frozen=True)
class Mark:
    """A point of a front with its intervals, in pixels."""

    x: float
    y: float
    low: tuple[float, float] | None  # ends of the interval in x, or none
    high: tuple[float, float] | None  # in y
    label: str
    said: str  # all of it, in words
    hollow: bool  # another point beats it


@dataclass(frozen=True)
class Curve:
    """One model: its points, and a line through those that no other beats."""

    name: str
    colour: int
    marks: Sequence[Mark]
    line: str  # points of an SVG polyline


@dataclass(frozen=True)
class Plane:
    """Two scores of all models against each other."""

    title: str
    across: str
    up: str
    curves: Sequence[Curve]
    ticks: tuple[Sequence[tuple[float, str]], Sequence[tuple[float, str]]]  # place and number along each axis


def of(found: Mapping[str, Any], settings: Mapping[str, Any], command: str = "") -> str:
    """The page of `fronts.compared`; `settings` are those of the evaluation."""
    models, scores = found["models"], found["scores"]
    planes = [_plane(models, *pair) for pair in combinations(scores, 2)]
    names = " and ".join(each["name"] for each in models)
    return render(
        "front.html.j2",
        title=f"Front of {names}",
        status=f"{settings['images']:,} images per mixture, prompts {settings['prompts']}, seed {settings['seed']}.",
        results=sentences(found),
        figures=[Tile(f"{each['hypervolume']['value']:.4f}", f"hypervolume of {each['name']}") for each in models],
        planes=planes,
        tables=[table(each, scores) for each in models],
        order=" : ".join(models[0]["points"][0]["mixture"]),
        floor=", ".join(f"{name} {low:.3g}" for name, low in zip(scores, found["floor"], strict=True)),
        size={"width": WIDTH, "height": HEIGHT, "left": LEFT, "bottom": HEIGHT - BOTTOM, "top": TOP},
        settings=Table(
            ["setting", "value"], [[key, value] for key, value in flat(dict(settings)).items()], 2, "Settings"
        ),
        command=command,
    )


def sentences(found: Mapping[str, Any]) -> list[str]:
    """The hypervolume of each model with its interval, and the differences."""
    said = [
        f"{each['name']}: hypervolume {each['hypervolume']['value']:.4f} {_interval(each['hypervolume'])}."
        for each in found["models"]
    ]
    for each in found["differences"]:
        one, other = each["models"]
        p = "" if each["p"] is None else f", p = {each['p']:.2g}"
        said.append(f"{one} against {other}: {each['hypervolume']:+.4f} {_interval(each)}{p}.")
    return said


def _interval(of: Mapping[str, Any]) -> str:
    if not of["over_prompts"]:
        return "[–]"
    low, high = of["over_prompts"]
    return f"[{low:.4f}, {high:.4f}]"


def table(model: Mapping[str, Any], scores: Sequence[str]) -> Table:
    """The mixtures of one model with their scores."""
    objectives = list(model["points"][0]["mixture"])
    head = [*(f"weight of {name}" for name in objectives), *scores, "on the front"]
    rows = []
    for each in model["points"]:
        cells = [_measure(name).interval(each["scores"][name]) for name in scores]
        rows.append([*(f"{w:.3g}" for w in each["mixture"].values()), *cells, "yes" if each["on_front"] else "no"])
    return Table(head, rows, 0, f"Mixtures of {model['name']}")


def _measure(name: str, scores: Sequence[Score] = ()) -> Measure:
    return Measure.of(name, [(0, {"scores": {name: {"overall": each}}}) for each in scores or [{"mean": 0.0}]])


def _plane(models: Sequence[Mapping[str, Any]], across: str, up: str) -> Plane:
    every = [point["scores"] for model in models for point in model["points"]]
    x, y = (_Axis.over([scores[name] for scores in every]) for name in (across, up))
    curves = [_curve(model, k, (across, up), x, y) for k, model in enumerate(models)]
    right, above = (_measure(name).label for name in (across, up))
    ticks = [(x.place(value, LEFT, WIDTH - RIGHT), _measure(across).number(value)) for value in x.ticks()]
    rising = [(y.place(value, HEIGHT - BOTTOM, TOP), _measure(up).number(value)) for value in y.ticks()]
    return Plane(f"{right} and {above}", right, above, curves, (ticks, rising))


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float

    @classmethod
    def over(cls, scores: Sequence[Score]) -> _Axis:
        ends = [each[end] for each in scores for end in ("low", "mean", "high") if each.get(end) is not None]
        room = 0.06 * ((max(ends) - min(ends)) or 1.0)
        return cls(min(ends) - room, max(ends) + room)

    def place(self, value: float, start: float, end: float) -> float:
        return round(start + (end - start) * (value - self.low) / (self.high - self.low), 1)

    def ticks(self) -> list[float]:
        """Round numbers: multiples of 1, 2 or 5 times a power of ten."""
        least = (self.high - self.low) / TICKS
        power = 10.0 ** math.floor(math.log10(least))
        step = next(round_one * power for round_one in (1, 2, 5, 10) if round_one * power >= least)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _curve(model: Mapping[str, Any], colour: int, names: tuple[str, str], x: _Axis, y: _Axis) -> Curve:
    marks = []
    for each in model["points"]:
        across, up = (each["scores"][name] for name in names)
        weights = ", ".join(f"{name} {weight:.3g}" for name, weight in each["mixture"].items())
        said = "; ".join(f"{_measure(name).label} {_measure(name).interval(each['scores'][name])}" for name in names)
        label = " : ".join(f"{weight:.3g}" for weight in each["mixture"].values())
        said = f"{model['name']}, {weights}: {said}"
        wide, high = _ends(x, across, LEFT, WIDTH - RIGHT), _ends(y, up, HEIGHT - BOTTOM, TOP)
        left, top = x.place(across["mean"], LEFT, WIDTH - RIGHT), y.place(up["mean"], HEIGHT - BOTTOM, TOP)
        marks.append(Mark(left, top, wide, high, label, said, not each["on_front"]))
    best = sorted((each.x, each.y) for each in marks if not each.hollow)
    return Curve(model["name"], colour, marks, " ".join(f"{left},{top}" for left, top in best))


def _ends(axis: _Axis, score: Score, start: float, end: float) -> tuple[float, float] | None:
    if score["low"] is None:
        return None
    return axis.place(score["low"], start, end), axis.place(score["high"], start, end)
