"""The weights of several rewards in an iteration: fixed for a run, or drawn for each group of samples.

Drawn weights are told to the network too (`Condition.tensors["mixture"]`), so that one model learns all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Protocol

import torch
from torch import Tensor

from ..process.policy import MIXTURE, Condition
from ..process.rollout import Rollout
from ..system.streams import generator


class Weighting(Protocol):
    """The weights of R rewards."""

    def told(self, condition: Condition, iteration: int) -> Condition: ...  # with what the network is told of them
    def of(self, rollout: Rollout) -> Tensor: ...  # [R], or [N, R] if groups have weights of their own


@dataclass(frozen=True)
class Fixed:
    """The same weights [R] for all samples."""

    weights: Tensor

    def told(self, condition: Condition, iteration: int) -> Condition:
        return condition

    def of(self, rollout: Rollout) -> Tensor:
        return self.weights


@dataclass(frozen=True)
class Drawn:
    """Every group of samples has its own mixture w of the K rewards of weight != 0; it multiplies `weights` [R]."""

    weights: Tensor
    seed: int

    def told(self, condition: Condition, iteration: int) -> Condition:
        mixture = mixtures(self.seed, iteration, len(condition), int((self.weights != 0).sum()))
        device = next(iter(condition.tensors.values())).device
        return replace(condition, tensors={**condition.tensors, MIXTURE: mixture.to(device)})

    def of(self, rollout: Rollout) -> Tensor:
        found = torch.zeros(len(rollout), len(self.weights), dtype=torch.float64)
        found[:, self.weights != 0] = rollout.condition.tensors[MIXTURE].double().cpu()[rollout.group]
        return found * self.weights.double()


def mixtures(seed: int, iteration: int, groups: int, many: int) -> Tensor:
    """The mixtures [groups, many] of an iteration, float32: every second group is at a corner, the others are uniform
    on the simplex (Dirichlet(1)).

    Corners take turns, from a random one on. Each row is a function of (seed, iteration, its number).
    """
    first = int(torch.randint(2 * many, (), generator=generator("corners", seed, iteration)))
    found = torch.zeros(groups, many)
    for group in range(groups):
        turn = group + first
        if turn % 2:
            parts = torch.empty(many, dtype=torch.float64)
            parts.exponential_(generator=generator("mixture", seed, iteration, group))
            found[group] = (parts / parts.sum()).float()
        else:
            found[group, turn // 2 % many] = 1
    return found


def lattice(many: int, points: int) -> list[tuple[float, ...]]:
    """Mixtures of `many` objectives on an even grid with `points` of them along each edge of the simplex, corners
    included.

    Raises:
        ValueError: there are fewer than two points along an edge.
    """
    if points < 2:
        raise ValueError(f"a front needs at least 2 points from corner to corner, not {points}")
    steps = points - 1
    counts = (each for each in product(range(steps, -1, -1), repeat=many) if sum(each) == steps)
    return [tuple(count / steps for count in each) for each in counts]


def named(mixture: Sequence[float], names: Sequence[str]) -> str:
    """A mixture in words: strict=0.7 balance=0.3"""
    return " ".join(f"{name}={weight:.3g}" for name, weight in zip(names, mixture, strict=True))
