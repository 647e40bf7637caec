"""Episodes side by side: the same questions before and after training, from episodes.jsonl, as values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from ..agent import episodes
from ..evaluation.outcome import counted, when
from ..system import strict_json
from ..training.record import Record
from .behaviour import ENDED, WRONG, first_and_last
from .page import Line
from .parts import Fact

MOST = 5  # questions that are shown side by side
LONG = 20_000  # characters of a text that are shown


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


def _moment(iteration: int) -> str:
    return when(iteration).capitalize()


def unrolled(run: Record, lines: Sequence[Line]) -> dict[str, Any]:
    """The same questions before and after training, chosen by category and never by their results."""
    by_iteration: dict[int, dict[str, Recorded]] = {}
    for line in episodes.read(run):
        with suppress(ValidationError):
            each = Recorded.model_validate(line)
            by_iteration.setdefault(each.iteration, {}).setdefault(each.question, each)
    moments = first_and_last(sorted(by_iteration))
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
