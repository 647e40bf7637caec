"""Which algorithm a finished study recommends: the best at equal time, and those that cannot be told from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BUDGETS = {"seconds": "seconds of training", "evaluations": "network passes", "images": "training images"}
"""what a study is read at: the first of these that it has"""


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, given: Mapping[str, float]) -> Interval:
        return cls(given["mean"], given["low"], given["high"])

    def percent(self, sign: str = "") -> str:
        """61.2 % [58.9, 63.4], or with a sign in points."""
        mean, low, high = (f"{100 * each:{sign}.1f}" for each in (self.mean, self.low, self.high))
        return f"{mean} {'points' if sign else '%'} [{low}, {high}]"


@dataclass(frozen=True)
class Ranking:
    """Algorithms at one budget and for one reward of a study, the best first."""

    reward: str  # its name in the study
    score: str
    budget: str
    amount: float
    seeds: int
    base: float
    scores: Mapping[str, Interval]
    over: Mapping[str, Mapping[str, Interval]]  # how far each is above each other, paired
    collapsed: Mapping[str, int]
    seconds: Mapping[str, float]  # of an image, on the machine of the study
    machine: str

    def difference(self, better: str, other: str) -> Interval:
        return self.over[better][other]

    def told_apart(self, better: str, other: str) -> bool:
        """Whether the interval of the difference lies above 0."""
        return self.difference(better, other).low > 0

    def among(self, names: Iterable[str]) -> tuple[str, ...]:
        """Those of these algorithms that were compared, the best first."""
        wanted = set(names)
        return tuple(name for name in self.scores if name in wanted)

    def leaders(self, names: Iterable[str]) -> tuple[str, ...]:
        """The best of these algorithms, and those that cannot be told from it."""
        best, *others = self.among(names) or ("",)
        return tuple(filter(None, (best, *(name for name in others if not self.told_apart(best, name)))))

    @property
    def when(self) -> str:
        return f"after {self.amount:,.0f} {BUDGETS[self.budget]}"


def ranking(found: Mapping[str, Any], rewards: Sequence[str], passing: bool, verdicts: Iterable[str]) -> Ranking | None:
    """What a study says that is closest to a question; None if it is empty.

    Args:
        found: a study.json.
        rewards: what will be optimised.
        passing: whether each of them is 1 or 0, pass or fail.
        verdicts: the names of all rewards that are.
    """
    if not found.get("rewards"):
        return None
    each = _closest(found, rewards, passing, set(verdicts))
    budget = next(name for name in BUDGETS if name in each["budgets"])
    own, study = each["budgets"][budget], found["study"]
    rows = dict(sorted(own["algorithms"].items(), key=lambda item: -item[1]["mean"]))
    return Ranking(
        each["reward"],
        study["score"],
        budget,
        own["amount"],
        len(study["seeds"]),
        each["base"]["mean"],
        {name: Interval.of(row) for name, row in rows.items()},
        {name: {other: Interval.of(by) for other, by in row["over"].items()} for name, row in rows.items()},
        {name: row["collapsed"] for name, row in rows.items()},
        {name: cost["seconds"] for name, cost in found["costs"].items()},
        found["machine"],
    )


def _closest(found: Mapping[str, Any], rewards: Sequence[str], passing: bool, verdicts: set[str]) -> Mapping[str, Any]:
    """The same rewards; else as many of the same kind, pass/fail or graded; else of the same kind; else the first."""
    named: Mapping[str, Sequence[str]] = found["study"]["rewards"]

    def unlike(each: Mapping[str, Any]) -> tuple[bool, bool, bool]:
        own = named[each["reward"]]
        return set(own) != set(rewards), (set(own) <= verdicts) != passing, (len(own) > 1) != (len(rewards) > 1)

    closest: Mapping[str, Any] = min(found["rewards"], key=unlike)
    return closest
