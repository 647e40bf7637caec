"""Scores of trained weights, next to those of the weights before training."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..evaluation import comparison, outcome
from ..evaluation.comparison import Difference
from ..evaluation.measurement import Measurement
from ..evaluation.outcome import Measure
from .notebook import paragraph, table


@dataclass(frozen=True, repr=False)
class Scores:
    """The result of `evaluate`."""

    iteration: int  # of the trained weights
    after: Measurement  # of the trained weights
    before: Measurement | None  # of the weights before training, on the same prompts and noise; None: not asked

    @property
    def mean(self) -> dict[str, float]:
        """The mean of each score of the trained weights, the headline first."""
        return {name: own.double().mean().item() for name, own in self.after.scores.items()}

    @cached_property
    def differences(self) -> list[Difference]:
        """The paired difference of each score, trained minus base, with intervals and p: overall, then by category."""
        return comparison.differences([self.before, self.after]) if self.before else []

    @cached_property
    def _evaluations(self) -> outcome.Evaluations:
        pairs = [(0, self.before), (self.iteration, self.after)]
        return [(at, each.summary()) for at, each in pairs if each is not None]

    @property
    def sentence(self) -> str:
        """The headline score before and after, with 95 % intervals, and whether the difference is significant."""
        measure = Measure.every(self._evaluations)[0]
        own = [each for each in self.differences if each.score == measure.name and each.category is None]
        if not own:
            return outcome.sentence(self._evaluations)
        change, ((_, before), (_, after)) = own[0], measure.overall
        verdict = "significant" if change.significant else "no evidence of a change"
        sign = "" if change.p_said.startswith("<") else "= "
        return (
            f"{measure.label[0].upper()}{measure.label[1:]}: {measure.interval(before)} before training, "
            f"{measure.interval(after)} after {outcome.counted(self.iteration, 'iteration')}. On the same prompts and "
            f"noise the difference is {measure.difference(change.mean, change.low, change.high)}, {verdict} "
            f"(p {sign}{change.p_said})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON: settings, and scores with intervals overall and by category."""
        names = ("before", "after")[-len(self._evaluations) :]
        found: dict[str, Any] = {name: each for name, (_, each) in zip(names, self._evaluations, strict=True)}
        return found | {"differences": [each.to_dict() for each in self.differences]}

    def _rows(self) -> list[list[str]]:
        """A line per score: before, after, and the paired difference."""
        rows = []
        for measure in Measure.every(self._evaluations):
            row = [measure.name, *(measure.interval(score) for _, score in measure.overall)]
            own = [each for each in self.differences if each.score == measure.name and each.category is None]
            rows.append([*row, *(measure.difference(each.mean, each.low, each.high) for each in own)])
        return rows

    @property
    def _head(self) -> list[str]:
        return ["score", "before", "after", "difference"] if self.before else ["score", "after"]

    def __repr__(self) -> str:
        return "\n".join([self.sentence, *("  ".join(row) for row in self._rows())])

    def _repr_html_(self) -> str:
        return paragraph(self.sentence) + table(self._head, self._rows())
