"""Paired comparison of models, image by image: the same prompts and the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .hacking import Change, hacked
from .measurement import Measurement, numbered
from .provenance import differing, other_code, other_versions
from .statistics import LEVEL, bootstrap, bounds, holm, mcnemar, p_value


@dataclass(frozen=True)
class Difference:
    """The paired difference of a score: mean of `after` minus mean of `before`, over pairs of images."""

    score: str
    before: str
    after: str
    category: str | None  # None: all categories
    mean: float
    low: float | None  # paired 95 % interval over prompts; None with one prompt, or if no pass/fail score changed
    high: float | None
    n: int  # pairs
    prompts: int
    gained: int | None  # pairs that changed from 0 to 1, and from 1 to 0; None if the score is not pass/fail
    lost: int | None
    p: float  # from the bootstrap over prompts; for pass/fail scores, the larger one of this and McNemar's
    p_adjusted: float  # Holm-corrected over the pairs of models (for categories, also over the categories)

    @property
    def significant(self) -> bool:
        return self.p_adjusted < LEVEL

    @property
    def p_said(self) -> str:
        return "<0.001" if self.p_adjusted < 0.001 else f"{self.p_adjusted:.2g}"

    @property
    def change(self) -> Change:
        ends = (-np.inf, np.inf) if self.low is None or self.high is None else (self.low, self.high)
        return Change(self.score, self.mean, *ends)

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "significant": self.significant}


def refuse_unequal(one: Measurement | dict[str, Any], other: Measurement | dict[str, Any]) -> None:
    """Raises ValueError, with the differing settings, if two evaluations cannot be compared."""
    a, b = (each.settings if isinstance(each, Measurement) else each for each in (one, other))
    if found := differing(a, b):
        names = " and ".join(str(each.get("model", {}).get("name", "a model")) for each in (a, b))
        raise ValueError(f"{names} cannot be compared because of different settings: {', '.join(found)}")
    if isinstance(one, Measurement) and isinstance(other, Measurement):
        if one.texts != other.texts:  # the same settings, so one of the files was edited
            raise ValueError(f"{one.name} and {other.name} cannot be compared: their images have different prompts")
        if not one.scores.keys() & other.scores.keys():
            said = f"{', '.join(one.scores)} and {', '.join(other.scores)}"
            raise ValueError(f"{one.name} and {other.name} have no score in common: {said}")


def warnings(found: Sequence[Measurement]) -> list[str]:
    """Differences between the first and the others that are allowed, but worth a warning."""
    said = []
    for one, other in ((found[0], each) for each in found[1:]):
        if libraries := other_versions(one.settings, other.settings):
            said.append(f"{one.name} and {other.name} were measured with different versions of {', '.join(libraries)}")
        if rewards := other_code(one.settings, other.settings):
            said.append(f"{one.name} and {other.name} were measured with different code of {', '.join(rewards)}")
        if one.settings.get("times") != other.settings.get("times"):
            said.append(f"{one.name} and {other.name} use different time grids, each that of its own scheduler")
    return said


def differences(found: Sequence[Measurement]) -> list[Difference]:
    """Every later model minus every earlier one, for each score of both: overall, then per category.

    Raises:
        ValueError: their settings differ.
    """
    for one, other in combinations(found, 2):
        refuse_unequal(one, other)
    pairs = [
        (score, one, other)
        for score in dict.fromkeys(score for each in found for score in each.scores)
        for one, other in combinations(found, 2)
        if score in one.scores and score in other.scores
    ]
    if not pairs:
        return []
    rows = found[0].rows()
    parts = [each for category, at in rows.items() for each in _differences(pairs, category, at)]
    return _corrected(_differences(pairs, None, np.arange(len(found[0])))) + (
        _corrected(parts) if len(rows) > 1 else []
    )


Pair = tuple[str, Measurement, Measurement]  # of which score, before, after


def _differences(pairs: Sequence[Pair], category: str | None, rows: NDArray[np.int64]) -> list[Difference]:
    """The differences over some images, all from the same resamples; not corrected yet."""
    first = pairs[0][1]
    prompt, strata = first.prompt[rows], numbered(first.categories)[rows]
    prompts = len(np.unique(prompt))
    changes = [(after.scores[score][rows] - before.scores[score][rows]).double() for score, before, after in pairs]
    means = bootstrap(torch.stack(changes, 1).numpy(), prompt, strata) if prompts > 1 else None
    found = []
    for k, ((score, before, after), change) in enumerate(zip(pairs, changes, strict=True)):
        low, high = (None, None) if means is None else bounds(means[:, k])
        p = 1.0 if means is None else p_value(means[:, k], prompts)
        gained = lost = None
        if score in before.verdicts & after.verdicts:
            gained, lost = int((change > 0).sum()), int((change < 0).sum())
            p = max(p, mcnemar(gained, lost))
            if not gained + lost:  # resampling shows no spread, but that does not prove that there is none
                low = high = None
        found.append(
            Difference(score, before.name, after.name, category, change.mean().item(), low, high, len(rows), prompts,
                       gained, lost, p, p_adjusted=p)
        )  # fmt: skip
    return found


def _corrected(changes: Sequence[Difference]) -> list[Difference]:
    """The differences with Holm's correction within each score."""
    adjusted: dict[int, float] = {}
    for score in dict.fromkeys(each.score for each in changes):
        family = [k for k, each in enumerate(changes) if each.score == score]
        adjusted |= dict(zip(family, holm([changes[k].p for k in family]), strict=True))
    return [replace(each, p_adjusted=adjusted[k]) for k, each in enumerate(changes)]


def hacking(found: Sequence[Measurement], changes: Sequence[Difference]) -> list[str]:
    """A warning for each pair of models if the headline rose while a guard fell."""
    overall = {(each.before, each.after, each.score): each.change for each in changes if each.category is None}
    said = []
    for one, other in combinations(found, 2):
        for guard in dict.fromkeys([*one.guards, *other.guards]):
            keys = [(one.name, other.name, score) for score in (one.headline, guard)]
            if all(key in overall for key in keys) and (line := hacked(*(overall[key] for key in keys))):
                said.append(f"{other.name} against {one.name}: {line}")
    return said
