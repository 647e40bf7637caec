"""The lines of metrics.jsonl that can be used: a file that was damaged or cut off keeps its other lines."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from ..evaluation.outcome import without_figures
from ..system import strict_json

LOOSE = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
PACE = ("slowest", "fastest")  # of `seconds`: those of two processes, see metrics.pace
NO_PARTS = ("total", "cpu_share", *PACE)  # keys of `seconds` that are not parts of the total


class Score(BaseModel):
    model_config = LOOSE
    mean: float
    low: float | None
    high: float | None
    n: float


class Scored(BaseModel):
    model_config = LOOSE
    overall: Score
    categories: dict[str, Score] = {}


class Evaluated(BaseModel):
    model_config = LOOSE
    scores: dict[str, Scored] = {}


class Line(BaseModel):
    """What readers of a line rely on; metrics of any name may come beside it."""

    model_config = LOOSE
    iteration: int
    images: int = 0
    samples: int = 0
    episodes: int = 0
    reward: float | None = None
    health: list[str] | None = None
    seconds: dict[str, float] | None = None
    speed: dict[str, float] | None = None
    evaluation: Evaluated | None = None


def parsed(text: str) -> list[dict[str, Any]]:
    """The lines of the text that were not cut off or overwritten, in order."""
    return [line for each in text.splitlines() if (line := _line(each)) is not None]


def _line(text: str) -> dict[str, Any] | None:
    try:
        found = strict_json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and type(found.get("iteration")) is int and found["iteration"] >= 0
    return found if whole else None


def readable(text: str) -> list[dict[str, Any]]:
    """Those of them that readers can use."""
    return [line for line in parsed(text) if _is_usable(line)]


def _is_usable(line: dict[str, Any]) -> bool:
    try:
        Line.model_validate(line)
    except ValidationError:
        return False
    return True


def gaps(lines: Sequence[dict[str, Any]], last: int) -> list[int]:
    """The iterations from 1 to `last` without a line."""
    known = {line["iteration"] for line in lines}
    return [iteration for iteration in range(1, last + 1) if iteration not in known]


def spans(numbers: Sequence[int], most: int = 12) -> str:
    """Increasing whole numbers in short form: 3–5, 9."""
    found = Spans()
    for number in numbers:
        found.add(number)
    return found.said(most)


@dataclass
class Spans:
    """Increasing whole numbers, one by one; `said` costs the same however many there are."""

    count: int = 0
    _found: list[list[int]] = field(default_factory=list)

    def add(self, number: int) -> None:
        self.count += 1
        if self._found and number == self._found[-1][1] + 1:
            self._found[-1][1] = number
        else:
            self._found.append([number, number])

    def said(self, most: int = 12) -> str:
        """3–5, 9"""
        whole = len(self._found) <= most
        words = [_span(*each) for each in (self._found if whole else self._found[: most - 1])]
        return ", ".join(words if whole else [*words, f"… {_span(*self._found[-1])} ({self.count} in all)"])


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


class Warnings:
    """Each kind of warning of a run once: its latest words, and in which iterations it came."""

    def __init__(self) -> None:
        self._latest: dict[str, str] = {}
        self._at: dict[str, Spans] = {}

    def add(self, lines: Iterable[Mapping[str, Any]]) -> None:
        """The next lines of metrics.jsonl."""
        for line in lines:
            for message in line.get("health") or []:
                kind = without_figures(message)
                self._latest[kind] = message
                self._at.setdefault(kind, Spans()).add(line["iteration"])

    def rows(self) -> list[list[str]]:
        """Of each kind: its latest words, how often it came, and in which iterations."""
        return [[said, f"{self._at[kind].count:,}", self._at[kind].said()] for kind, said in self._latest.items()]
