"""The runs of a study: their names, settings and lengths. All follow from the study, its costs and its search alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import rewards
from ..algorithms.algorithm import differentiates
from ..rewards import slopes
from ..system.nested import joined
from ..training.config import from_dict, settings_type
from .costs import Cost
from .knobs import trials
from .plan import Study

SEARCH_SHARE = 1 / 3  # of the longest run, for a trial
TRAINING, VALIDATION = "prompts/training.jsonl", "prompts/validation.jsonl"


@dataclass(frozen=True)
class Planned:
    """One run."""

    name: str  # of its folder, below `runs`
    algorithm: str  # or the name of a variant
    reward: str
    seed: int
    trial: int | None  # of the search; None: a compared run
    settings: Mapping[str, Any]  # a config file


def longest(study: Study, cost: Cost) -> float:
    """Training images that reach every budget."""
    return max(cost.images_for(name, getattr(study.budgets, name)) for name in study.budgets.given)


def refuse(study: Study, costs: Mapping[str, Cost]) -> None:
    """Raises ValueError for a budget that ends before the first iteration of an algorithm."""
    for algorithm, cost in costs.items():
        for name in study.budgets.given:
            amount = getattr(study.budgets, name)
            if cost.images_for(name, amount) < cost.images:
                least = cost.images / cost.images_for(name, 1.0)
                raise ValueError(
                    f"budgets.{name} = {amount:g} is less than one iteration of {algorithm}, which takes {least:.4g}: "
                    "raise it, or lower options.run.images_per_update"
                )


def refuse_without_gradients(study: Study) -> None:
    """Raises ValueError for a reward without a gradient, if an algorithm of the study needs one."""
    needing = [entry for entry in study.entries if differentiates(from_dict(study.given(entry)).algorithm)]
    for names in study.rewards.values() if needing else ():
        slopes.refuse_without(rewards.load(list(names)), needing[0])


def of_settings(study: Study, algorithm: str, reward: str, seed: int, more: Mapping[str, Any]) -> dict[str, Any]:
    """A config file for one run on one thread."""
    preset = settings_type(study.kind(algorithm))()
    own = {
        "model": study.model,
        "reward": list(study.rewards[reward]),
        "prompts": study.prompts,
        "precision": study.precision,
        "threads": 1,
        "run": {"seed": seed, "keep": 1, "stop_when_hacked": False},
        "evaluation": {
            "prompts": study.held_out,
            "rewards": list(study.measured),
            "guard": [name for name in preset.evaluation.guard if name in study.measured[1:]],
            "images": study.images,
        },
    }
    return joined(joined(study.given(algorithm), own), more)


def lengths(images: float, cost: Cost, points: int) -> dict[str, int]:
    """Iterations that reach so many images, in so many equal parts."""
    every = max(1, math.ceil(math.ceil(images / cost.images - 1e-9) / points))
    return {"iterations": every * points, "evaluate_every": every, "checkpoint_every": every}


def searched(study: Study, costs: Mapping[str, Cost], folder: Path) -> Iterator[Planned]:
    """The runs of the search: one evaluation each, at their end, on the validation prompts."""
    if study.search is None:
        return
    how, seed = study.search, study.search.seed
    validation = {"prompts": str(folder / VALIDATION), "images": how.measured, "rewards": [study.score], "guard": []}
    for reward in study.rewards:
        for algorithm in study.algorithms:
            cost = costs[algorithm]
            images = max(how.images or SEARCH_SHARE * longest(study, cost), cost.images)
            fixed = {
                "run": lengths(images, cost, 1),
                "prompts": str(folder / TRAINING),
                "evaluation": validation,
            }
            for number, knobs in enumerate(trials(algorithm, how.trials)):
                given = of_settings(study, algorithm, reward, seed, joined(fixed, knobs))
                yield Planned(f"search/{reward}/{algorithm}/{number}", algorithm, reward, seed, number, given)


def compared(study: Study, costs: Mapping[str, Cost], chosen: Mapping[str, int], folder: Path) -> Iterator[Planned]:
    """The compared runs, seed by seed, so that a study that is stopped early has some of everything.

    Args:
        chosen: the best trial of each `reward/algorithm`.
    """
    prompts = {"prompts": str(folder / TRAINING)} if study.search else {}
    for seed in study.seeds:
        for reward in study.rewards:
            for algorithm in study.entries:
                cost = costs[algorithm]
                best = chosen.get(f"{reward}/{algorithm}", 0)
                knobs = list(trials(study.kind(algorithm), best + 1))[best]
                fixed = {"run": lengths(longest(study, cost), cost, study.points), **prompts}
                given = of_settings(study, algorithm, reward, seed, joined(fixed, knobs))
                yield Planned(f"compared/{reward}/{algorithm}/{seed}", algorithm, reward, seed, None, given)


def for_cost(study: Study, algorithm: str) -> Any:
    """Settings whose first iterations are timed."""
    reward = next(iter(study.rewards))
    given = of_settings(study, algorithm, reward, study.seeds[0], {"run": {"iterations": 1000}})
    return from_dict(given)
