"""The sections of an agent's report as values: episodes side by side, tools by turn, turns and ends, time by module.

What an evaluation measured besides scores comes from metrics.jsonl (`evaluation.behaviour`), the episodes come from
episodes.jsonl. Older or damaged lines lack parts of it; those parts are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from ..agent import episodes
from ..evaluation.outcome import GREEDY, Measure, counted, when
from ..system import strict_json
from ..training.lines import spans
from ..training.record import Record
from . import curves
from .curves import Run
from .page import Line, duration, is_number
from .parts import Chart, Fact, Series, Table

MOST = 5  # questions that are shown side by side
LONG = 20_000  # characters of a text that are shown
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
MODULES = {"rollout": "planner", "planner": "planner", "train": "planner", "analyst": "analysis"}  # by part of the time
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


class Turn(BaseModel):
    """A turn of a recorded episode (agent/evaluation.py)."""

    said: str = ""
    tool: str | None = None
    goal: str = ""
    context: str = ""
    arguments: dict[str, Any] | None = None
    result: str = ""
    trouble: str = ""
    stop: bool | None = None
    verdict: str = ""


class Recorded(BaseModel):
    """A line of episodes.jsonl."""

    iteration: int
    question: str
    category: str = ""
    expected: list[str] = []
    scores: dict[str, float | None] = {}
    answer: str = ""
    end: str = ""
    why: str = ""
    turns: list[Turn] = []


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


@dataclass(frozen=True)
class Step:
    """A turn, as the page shows it."""

    tool: str
    text: Sequence[tuple[str, str]]  # what, and the text itself, which may be long
    trouble: str = ""
    verdict: str = ""
    why: str = ""


@dataclass(frozen=True)
class Played:
    """An episode, as the page shows it."""

    label: str
    answer: str = ""
    facts: Sequence[Fact] = ()
    end: str = ""
    steps: Sequence[Step] = ()


@dataclass(frozen=True)
class Question:
    """A question with its episodes, before and after training."""

    text: str
    about: str
    expected: str
    played: Sequence[Played | None]  # None: it was not asked then


def sections(run: Record, lines: Sequence[Line], curve: Run) -> dict[str, Any]:
    """The values of agent.html.j2 for its own sections."""
    measured = list(_measured(lines))
    return {
        "modules": _modules(lines),
        "unrolled": _unrolled(run, lines),
        "tools": _tools(measured, curve),
        "turns": _turns(measured, curve),
        "spent": _spent(lines),
    }


def sampled_and_greedy(run: Run, measure: Measure, others: Sequence[Measure]) -> list[tuple[Run, Measure]]:
    """The headline and the same score of greedy episodes, for one chart."""
    greedy = next((other for other in others if other.name == f"{measure.name} {GREEDY}"), None)
    if greedy is None:
        return [(run, measure)]
    return [(replace(run, name="sampled", colour=0), measure), (replace(run, name="greedy", colour=1), greedy)]


def _measured(lines: Sequence[Line]) -> Iterator[Measured]:
    for line in lines:
        told = (line.get("evaluation") or {}).get("behaviour")
        found: dict[Way, Behaviour] = {}
        for way in WAYS:
            with suppress(ValidationError):
                found[way] = Behaviour.model_validate(told.get(way) if isinstance(told, dict) else None)
        if found:
            yield Measured(line["iteration"], found)


def _modules(lines: Sequence[Line]) -> list[str]:
    """The model of each module, once for all evaluations that share them."""
    groups: dict[str, list[int]] = {}
    for line in lines:
        named = (line.get("evaluation") or {}).get("modules")
        if isinstance(named, dict):
            groups.setdefault(", ".join(f"{module} {model}" for module, model in named.items()), []).append(
                line["iteration"]
            )
    one = len(groups) == 1
    return [f"Models{'' if one else f' (iterations {spans(at)})'}: {said}." for said, at in groups.items()]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _moment(iteration: int) -> str:
    return when(iteration).capitalize()


def _ends(found: Sequence[Any]) -> list[Any]:
    """The first and the last; one if there are no two."""
    return [*found[:1], *found[1:][-1:]]


# Episodes


def _unrolled(run: Record, lines: Sequence[Line]) -> dict[str, Any]:
    """The same questions before and after training, chosen by category and never by their results."""
    by_iteration: dict[int, dict[str, Recorded]] = {}
    for line in episodes.read(run):
        with suppress(ValidationError):
            each = Recorded.model_validate(line)
            by_iteration.setdefault(each.iteration, {}).setdefault(each.question, each)
    moments = _ends(sorted(by_iteration))
    if not moments:
        return {}
    known = [by_iteration[moment] for moment in moments]
    common = [each for question, each in known[0].items() if all(question in own for own in known)]
    chosen = _spread(common or list(known[0].values()))
    verdicts = {line["iteration"]: _verdicts(line) for line in lines}
    shown = [
        Question(
            each.question,
            each.category,
            " or ".join(each.expected),
            [
                _played(own[each.question], verdicts.get(moment, frozenset())) if each.question in own else None
                for moment, own in zip(moments, known, strict=True)
            ],
        )
        for each in chosen
    ]
    return {
        "moments": [_moment(moment) for moment in moments],
        "questions": shown,
        "kept": counted(len(known[-1]), "sampled episode"),
    }


def _spread(found: Sequence[Recorded]) -> list[Recorded]:
    """The first of each category, then the second of each, and so on."""
    turn: dict[str, int] = {}
    ranked = []
    for number, each in enumerate(found):
        turn[each.category] = turn.get(each.category, 0) + 1
        ranked.append((turn[each.category], number, each))
    return [each for _, _, each in sorted(ranked, key=lambda own: own[:2])[:MOST]]


def _verdicts(line: Line) -> frozenset[str]:
    """The scores of this evaluation that are pass or fail."""
    scores = (line.get("evaluation") or {}).get("scores") or {}
    return frozenset(name for name, score in scores.items() if score.get("verdicts") is True)


def _played(episode: Recorded, verdicts: frozenset[str]) -> Played:
    steps = [_step(turn) for turn in episode.turns]
    end = f"{counted(len(steps), 'turn')}, {ENDED.get(episode.end, episode.end)}"
    end = f"{end}: {episode.why}" if episode.why else end
    facts = list(_facts(episode, verdicts))
    return Played(_moment(episode.iteration), _cut(episode.answer), facts, _cut(end), steps)


def _facts(episode: Recorded, verdicts: frozenset[str]) -> Iterator[Fact]:
    if episode.end == "failed":
        yield Fact("", "lost", "wrong")
        return
    for number, (name, score) in enumerate(episode.scores.items()):
        if score is None:
            continue
        if name in verdicts:
            right = score >= 1
            yield Fact(name if number else "", "right" if right else "wrong", "right" if right else "wrong")
        else:
            yield Fact(name, f"{score:.3f}")


def _step(turn: Turn) -> Step:
    """A plan that could not be read is shown as the planner wrote it."""
    given = _input(turn)
    whole = [("goal", turn.goal), ("input", given), ("result", turn.result)]
    if turn.tool is None or not _repeats(turn):
        whole.insert(0, ("planner", turn.said))
    verdict = "" if turn.stop is None else "stop" if turn.stop else "go on"
    return Step(
        turn.tool or "no tool",
        [(name, _cut(text)) for name, text in whole if text.strip()],
        WRONG.get(turn.trouble, turn.trouble),
        verdict,
        _cut(turn.verdict),
    )


def _repeats(turn: Turn) -> bool:
    """Whether the planner's text says no more than its parts."""
    return turn.said.split() == " ".join([turn.tool or "", turn.goal, turn.context]).split()


def _input(turn: Turn) -> str:
    """The arguments of the tool; the planner's words for it if they did not become arguments."""
    if turn.arguments is None:
        return turn.context
    if len(turn.arguments) == 1:
        return _plain(next(iter(turn.arguments.values())))
    return "\n".join(f"{name}: {_plain(value)}" for name, value in turn.arguments.items())


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else strict_json.dumps(value)


def _cut(text: str) -> str:
    if len(text) <= LONG:
        return text
    return f"{text[:LONG]} … ({len(text) - LONG:,} more characters in {episodes.FILE})"


# Tools


def _tools(measured: Sequence[Measured], curve: Run) -> dict[str, Any]:
    """Tools by turn number before and after training, the share of episodes that use each, and curves."""
    recorded = dict.fromkeys(
        key.removeprefix("tool/") for line in curve.trained for key in line if key.startswith("tool/")
    )
    found = [each for each in _ends(measured) if "sampled" in each.behaviour]
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
        "moments": [_moment(each.iteration) for each in found],
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


# Turns


def _turns(measured: Sequence[Measured], curve: Run) -> dict[str, Any]:
    """How many turns episodes have, how they end, and what goes wrong in them."""
    found = _ends(measured)
    names = dict.fromkeys(name for own in _every(found) for name in _shares(own))
    never = [name for name in names if not any(_shares(own).get(name) for own in _every(found))]

    def figures(own: Behaviour) -> dict[str, str]:
        shares = {name: _percent(share) for name, share in _shares(own).items() if name not in never}
        tokens = "–" if own.answer_tokens is None else f"{own.answer_tokens:.1f}"
        return {"turns per episode": f"{own.turns:.2f}", **shares, "tokens per planner's answer": tokens}

    keys = {f"trouble/{name}": said for name, said in WRONG.items()} | PROBLEMS
    known = any("turns" in line for line in curve.trained)
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


# Time


def _spent(lines: Sequence[Line]) -> Table | None:
    """Seconds of all iterations by module, with the model of each."""
    named: dict[str, Any] = {}
    spent = dict.fromkeys((part for line in reversed(lines) for part in line.get("seconds") or {}), 0.0)
    for other in ("total", "cpu_share"):
        spent.pop(other, None)
    for line in lines:
        named = (line.get("evaluation") or {}).get("modules") or named
        for part, own in (line.get("seconds") or {}).items():
            if part in spent:
                spent[part] += own
    trained = max(1, sum(line["iteration"] > 0 for line in lines))
    rows = [
        [part, str(named.get(MODULES.get(part, part), "–")), duration(own), f"{own / trained:.3g} s"]
        for part, own in spent.items()
    ]
    return Table(["part", "model", "time", "per iteration"], rows, 2, "Time by module") if rows else None
