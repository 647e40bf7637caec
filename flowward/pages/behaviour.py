"""How an agent behaves in evaluations and in training, as values: tools by turn, turns, ends and problems."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..evaluation.outcome import counted, when
from . import curves
from .curves import Run
from .page import Line, is_number
from .parts import Chart, Series, Table

ENDED = {
    "stopped": "stopped by the verifier",
    "turns": "stopped at the limit of turns",
    "time": "stopped at the limit of time",
    "failed": "lost because a server did not answer",
}
WRONG = {
    "empty": "empty plan",
    "unreadable": "unreadable plan",
    "tool": "unknown tool",
    "arguments": "wrong arguments",
    "error": "error of the tool",
}
PROBLEMS = {
    "cut": "planner's answer cut at the limit of tokens",
    "undecided": "verifier said neither stop nor continue",
    "shortened": "a result in the memory was shortened",
    "dropped": "a result was left out of the memory",
}
SHOWN = ("turns", "end", "tool", "trouble", *PROBLEMS)  # metrics that these sections show, up to their slash
Way = Literal["sampled", "greedy"]
WAYS: tuple[Way, ...] = ("sampled", "greedy")


class Behaviour(BaseModel):
    """How the episodes of an evaluation went (agent/figures.py)."""

    model_config = ConfigDict(allow_inf_nan=False)
    turns: float
    ends: dict[str, float] = {}
    tools: dict[str, dict[str, float]] = {}  # by turn number: the share of each tool, and `n`
    used: dict[str, float] = {}
    troubles: dict[str, float] = {}
    cut: float = 0.0
    undecided: float = 0.0
    shortened: float = 0.0
    dropped: float = 0.0
    answer_tokens: float | None = None


@dataclass(frozen=True)
class Measured:
    """An evaluation with its behaviour."""

    iteration: int
    behaviour: Mapping[Way, Behaviour]


@dataclass(frozen=True)
class Share:
    """A tool's part of a bar."""

    name: str
    share: float
    colour: int

    @property
    def said(self) -> str:
        return f"{self.name} {_percent(self.share)}"


@dataclass(frozen=True)
class Bar:
    """The tools of one turn number."""

    label: str
    shares: Sequence[Share]


def measured_in(lines: Sequence[Line]) -> Iterator[Measured]:
    """The evaluations whose behaviour can be read."""
    for line in lines:
        told = (line.get("evaluation") or {}).get("behaviour")
        found: dict[Way, Behaviour] = {}
        for way in WAYS:
            with suppress(ValidationError):
                found[way] = Behaviour.model_validate(told.get(way) if isinstance(told, dict) else None)
        if found:
            yield Measured(line["iteration"], found)


def first_and_last(found: Sequence[Any]) -> list[Any]:
    """The first and the last item; only one if there are no two."""
    return [*found[:1], *found[1:][-1:]]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def tools(measured: Sequence[Measured], curve: Run) -> dict[str, Any]:
    """Tools by turn number before and after training, the share of episodes that use each, and curves."""
    recorded = dict.fromkeys(
        key.removeprefix("tool/") for line in curve.trained for key in line if key.startswith("tool/")
    )
    found = [each for each in first_and_last(measured) if "sampled" in each.behaviour]
    for own in _every(found):
        recorded |= dict.fromkeys(
            [*own.used, *(name for shares in own.tools.values() for name in shares if name != "n")]
        )
    names = sorted(recorded, key=lambda name: (name == "none", name))  # the same colour in all bars and curves
    colours = {name: number for number, name in enumerate(names)}
    keys = {f"tool/{name}": _tool(name) for name in names}
    chart = _several(curve, keys, "Share of turns with each tool, in training")
    ever = [name for name in names if any(own.used.get(name) for own in _every(found))]

    def used(own: Behaviour) -> dict[str, str]:
        return {_tool(name): _percent(own.used.get(name, 0.0)) for name in ever}

    return {
        "moments": [when(each.iteration).capitalize() for each in found],
        "bars": [_bars(each.behaviour["sampled"], colours) for each in found],
        "used": _compared(found, used, "episodes that use it"),
        "chart": chart,
    }


def _tool(name: str) -> str:
    return "no tool" if name == "none" else name


def _bars(own: Behaviour, colours: Mapping[str, int]) -> list[Bar]:
    bars = []
    for turn, shares in own.tools.items():
        many = int(shares.get("n", 0))
        parts = [Share(_tool(name), share, colours.get(name, 0)) for name, share in shares.items() if name != "n"]
        parts.sort(key=lambda part: part.colour)
        bars.append(Bar(f"turn {turn}, {counted(many, 'episode')}", [part for part in parts if part.share > 0]))
    return bars


def _several(curve: Run, keys: Mapping[str, str], title: str, whole: bool = True) -> Chart | None:
    """Shares of each iteration in one chart, without those that are always 0; None if all are.

    A tool that no turn of an iteration used has no key in its line.

    Args:
        keys: metrics, and their names in the legend.
        whole: the axis goes from 0 to 1.
    """
    series = []
    known = [any(key in line for key in keys) for line in curve.trained]
    for colour, (key, name) in enumerate(keys.items()):
        found = [line.get(key, 0.0) if has else None for line, has in zip(curve.trained, known, strict=True)]
        y = [value if is_number(value) else None for value in found]
        if any(y):
            series.append(Series(y, curve.axes[0].key, name, key=key, colour=colour))
    if not series:
        return None
    title = f"{title}: {series[0].name}" if len(series) == 1 else title  # a single curve has no legend
    return Chart(title, series, limits=curves.SHARE if whole else None, smooth=True, height=260)


def turns(measured: Sequence[Measured], curve: Run) -> dict[str, Any]:
    """How many turns episodes have, how they end, and what goes wrong in them."""
    found = first_and_last(measured)
    names = dict.fromkeys(name for own in _every(found) for name in _shares(own))
    never = [name for name in names if not any(_shares(own).get(name) for own in _every(found))]

    def figures(own: Behaviour) -> dict[str, str]:
        shares = {name: _percent(share) for name, share in _shares(own).items() if name not in never}
        tokens = "–" if own.answer_tokens is None else f"{own.answer_tokens:.1f}"
        return {"turns per episode": f"{own.turns:.2f}", **shares, "tokens per planner's answer": tokens}

    keys = {f"trouble/{name}": said for name, said in WRONG.items()} | PROBLEMS
    known = any(is_number(line.get("turns")) for line in curve.trained)
    return {
        "table": _compared(found, figures, ""),
        "never": ", ".join(never),
        "length": curves.metric([curve], "turns", height=260) if known else None,
        "ends": _several(curve, {f"end/{end}": said for end, said in ENDED.items()}, "How episodes end, in training"),
        "wrong": _several(curve, keys, "Turns with a problem, in training", whole=False),
        "trained": known,
    }


def _shares(own: Behaviour) -> dict[str, float]:
    """Of episodes with each end, and of turns with each problem, by their names on the page."""
    ends = {ENDED.get(end, end): share for end, share in own.ends.items()}
    troubles = {WRONG.get(name, name): share for name, share in own.troubles.items()}
    return ends | troubles | {said: getattr(own, name) for name, said in PROBLEMS.items()}


def _every(found: Sequence[Measured]) -> list[Behaviour]:
    return [own for each in found for own in each.behaviour.values()]


def _compared(found: Sequence[Measured], figures: Callable[[Behaviour], Mapping[str, str]], what: str) -> Table | None:
    """Figures of sampled and greedy episodes, before and after training, with their names; None if there are none."""
    columns = {
        f"{way}, {when(each.iteration)}": figures(each.behaviour[way])
        for way in WAYS
        for each in found
        if way in each.behaviour
    }
    rows = [
        [name, *(own.get(name, "–") for own in columns.values())]
        for name in dict.fromkeys(name for own in columns.values() for name in own)
    ]
    return Table([what, *columns], rows, about=f"{what or 'turns'}, before and after training") if rows else None
