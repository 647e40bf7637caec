"""What a study says: means with intervals at each budget, differences, speed, and what was not optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..evaluation.measurement import Measurement, numbered
from ..evaluation.seeds import area, improvement, improvements, interquartile_mean, reached, resampled
from ..evaluation.statistics import Floats, bounds
from .costs import Cost
from .curves import Curve
from .plan import Study
from .schedule import longest

SHARE = 2 / 3  # of the best algorithm's gain: the target, if the study names none


@dataclass(frozen=True)
class Table:
    """The runs of one reward, by algorithm; every algorithm has the same seeds in the same order."""

    study: Study
    reward: str
    curves: Mapping[str, Sequence[Curve]]
    costs: Mapping[str, Cost]
    prompt: Any  # [N] number of the prompt of each image
    stratum: Any  # [N] number of its category
    nats: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # from the base model, of each run

    @classmethod
    def of(
        cls,
        study: Study,
        reward: str,
        curves: Mapping[str, Sequence[Curve]],
        costs: Mapping[str, Cost],
        one: Measurement,
        nats: Mapping[str, Sequence[float | None]],
    ) -> Table:
        return cls(study, reward, curves, costs, one.prompt, numbered(one.categories), nats)

    def scores(self, name: str, budget: str, amount: float) -> dict[str, Floats]:
        """[S, N] of each algorithm at a budget."""
        return {
            algorithm: np.stack([run.at(name, self.costs[algorithm].images_for(budget, amount)) for run in runs])
            for algorithm, runs in self.curves.items()
        }

    def base(self, name: str) -> Floats:
        """[N] of the model before training."""
        return np.asarray(next(iter(self.curves.values()))[0].scores[name][0])


def of(table: Table) -> dict[str, Any]:
    """Everything that is concluded about one reward, for JSON. Scores are as the rewards give them."""
    study = table.study
    budgets = {}
    for name in study.budgets.given:
        budgets[name] = _at_budget(table, name, float(getattr(study.budgets, name)))
    base = _means(table, {"": table.base(study.score)[None]})[""]
    beside = {name: float(table.base(name).mean()) for name in study.measured[1:]}
    curves, nats = _curves(table), {name: list(own) for name, own in table.nats.items()}
    return {
        "reward": table.reward, "base": base, "base_beside": beside, "budgets": budgets, "curves": curves, "nats": nats,
    }  # fmt: skip


def _curves(table: Table) -> dict[str, dict[str, list[Any]]]:
    """The headline of every algorithm with its interval, in equal steps from the base model to the longest budget."""
    found: dict[str, dict[str, list[Any]]] = {name: {} for name in table.curves}
    ends = {name: longest(table.study, table.costs[name]) for name in table.curves}
    for part in range(table.study.points + 1):
        at = {name: end * part / table.study.points for name, end in ends.items()}
        for name, images in at.items():
            found[name].setdefault("images", []).append(images)
        scores = {
            name: np.stack([run.at(table.study.score, at[name]) for run in runs]) for name, runs in table.curves.items()
        }
        for name, own in _means(table, scores).items():
            for key, value in own.items():
                found[name].setdefault(key, []).append(value)
            found[name].setdefault("seeds", []).append([float(run) for run in scores[name].mean(1)])
    return found


def _at_budget(table: Table, budget: str, amount: float) -> dict[str, Any]:
    study, rows = table.study, dict[str, Any]()
    scores = table.scores(study.score, budget, amount)
    base, finals = float(table.base(study.score).mean()), {name: own.mean(1) for name, own in scores.items()}
    best = max(finals, key=lambda name: float(finals[name].mean()))
    target = study.target if study.target is not None else base + SHARE * (float(finals[best].mean()) - base)
    means, over, often = _means(table, scores), _over(table, scores), _often(table, scores)
    beside = {name: table.scores(name, budget, amount) for name in study.measured[1:]}
    for algorithm, runs in table.curves.items():
        cost, ends = table.costs[algorithm], finals[algorithm]
        unit, end = 1 / cost.images_for(budget, 1.0), cost.images_for(budget, amount)
        curves = [(run.images, run.means(study.score)) for run in runs]
        whole = [own for own, run in zip(curves, runs, strict=True) if run.failure is None]
        times = [reached(*_until(own, end), target) for own in curves]
        rows[algorithm] = {
            **means[algorithm],
            "seeds": [float(own) for own in ends],
            "interquartile_mean": interquartile_mean(ends),
            "area": float(np.mean([area(*own, end) for own in whole])) if whole else None,
            "to_target": [None if own is None else own * unit for own in times],
            "below_best": over[algorithm].get(best),
            "over": over[algorithm],
            "better_than": often[algorithm],
            "collapsed": sum(run.failure is not None or bool(own < base) for run, own in zip(runs, ends, strict=True)),
            "failed": [run.failure for run in runs if run.failure is not None],
            "beside": {name: float(own[algorithm].mean()) for name, own in beside.items()},
        }  # fmt: skip
    return {"amount": amount, "target": target, "best": best, "algorithms": rows}


def _until(curve: tuple[Sequence[float], Sequence[float]], end: float) -> tuple[list[float], list[float]]:
    """The points of a curve up to its end, and that end."""
    at, scores = curve
    known = [(x, y) for x, y in zip(at, scores, strict=True) if x < end]
    if at[-1] >= end:
        known.append((end, float(np.interp(end, at, scores))))
    return [x for x, _ in known], [y for _, y in known]


def _means(table: Table, scores: Mapping[str, Floats]) -> dict[str, dict[str, Any]]:
    """The mean of each, with its 95 % interval over seeds and prompts."""
    means = resampled(list(scores.values()), table.prompt, table.stratum, paired=False)
    found = {}
    for number, (name, own) in enumerate(scores.items()):
        low, high = bounds(means[:, number])
        found[name] = {"mean": float(own.mean()), "low": low, "high": high}
    return found


def _over(table: Table, scores: Mapping[str, Floats]) -> dict[str, dict[str, dict[str, float]]]:
    """How far each is above each other, on equal seeds, prompts and noise, with the 95 % interval."""
    drawn, names = resampled(list(scores.values()), table.prompt, table.stratum, paired=True), list(scores)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for a, one in enumerate(names):
        for b, other in enumerate(names):
            if a != b:
                low, high = bounds(drawn[:, a] - drawn[:, b])
                mean = float((scores[one] - scores[other]).mean())
                found[one][other] = {"mean": mean, "low": low, "high": high}
    return found


def _often(table: Table, scores: Mapping[str, Floats]) -> dict[str, dict[str, dict[str, float]]]:
    """How often a run of each is better than one of each other, with the 95 % interval over seeds and prompts."""
    names = list(scores)
    drawn = improvements(list(scores.values()), table.prompt, table.stratum)
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in names}
    for a, one in enumerate(names):
        for b, other in enumerate(names):
            if a != b:
                low, high = bounds(drawn[:, a, b])
                share = improvement(scores[one].mean(1), scores[other].mean(1))
                found[one][other] = {"mean": share, "low": low, "high": high}
    return found
