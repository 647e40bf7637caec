"""Measuring one model at many mixtures of its adapters, always on the same prompts and noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..evaluation.evaluate import Evaluation, measure
from ..evaluation.fronts import MOST_SCORES, Grid
from ..learning.mixtures import lattice
from ..models.mixture import mixed
from ..process.policy import Policy
from ..prompts import PromptSet
from ..rewards import Reward

MOST_MIXTURES = 200  # of one model


def refuse(policy: Policy, scores: Sequence[str], points: int) -> list[tuple[float, ...]]:
    """The mixtures of a grid with `points` of them from corner to corner.

    Raises:
        ValueError: the model has no adapters to mix, or fewer than there are scores; or the grid is too fine.
    """
    palette = policy.weights.palette
    if not palette:
        raise ValueError(
            f"{policy.name} has no adapters to mix: name a run with --palette, or put one together with --soup"
        )
    if not 2 <= len(scores) <= MOST_SCORES:
        raise ValueError(f"a front needs 2 to {MOST_SCORES} scores, not {len(scores)}: name them with --rewards")
    if len(palette) < len(scores):
        raise ValueError(
            f"{policy.name} has adapters for {', '.join(palette)} alone, too few for the {len(scores)} scores "
            f"{', '.join(scores)}: name fewer --rewards, or a palette with one adapter for each"
        )
    found = lattice(len(palette), points)
    if len(found) > MOST_MIXTURES:
        raise ValueError(f"{points} points per edge are {len(found):,} mixtures, and {MOST_MIXTURES} are allowed: "
                         "use fewer --points")  # fmt: skip
    return found


def measured(
    policy: Policy,
    name: str,
    mixtures: Sequence[tuple[float, ...]],
    prompts: PromptSet,
    evaluation: Evaluation,
    rewards: Mapping[str, Reward],
    advance: Callable[[int], object] = lambda images: None,
) -> Grid:
    """The scores of a palette at each of these mixtures. Its default mixture stays as it was."""
    found = []
    for mixture in mixtures:
        with mixed(policy.weights, mixture):
            found.append(replace(measure(policy, prompts, evaluation, rewards, advance=advance), name=name))
    return Grid(name, policy.weights.palette, tuple(mixtures), tuple(found))
