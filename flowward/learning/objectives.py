"""Several objectives that stay apart: points with an advantage per objective, and a step that is good for all.

A mix that returns [B, K] gives K point sets. Points are functions of their number, so the sets have the same times and
noises and differ only in their advantages.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from ..system import distributed
from .points import PointSet
from .rows import Rows

MOST = 8  # objectives: all of their 2^K - 1 subsets are tried
EXACT = 1e-9  # relative error of an equation that counts as solved


def common_descent(gram: Tensor) -> Tensor:
    """The weights [K] of the shortest vector in the convex hull of K gradients; `gram` [K, K] has their products.

    g = sum_k alpha_k g_k has <g, g_k> >= |g|^2 for every k, so a small step along -g lowers all losses. If g is 0, no
    step does (MGDA: Desideri, 2012, Comptes Rendus Mathematique 350:313; Sener and Koltun, 2018, arXiv:1810.04650).
    It is exact: a closed form for two gradients, all supports for more. A gradient that is 0 asks for nothing, so it
    gets weight 0 and does not stop the others.

    Raises:
        ValueError: there are more than MOST gradients.
    """
    if len(gram) > MOST:
        raise ValueError(f"common descent is for at most {MOST} rewards, not {len(gram)}: leave some out")
    products, alpha = gram.double(), torch.zeros(len(gram), dtype=torch.float64)
    if not products.isfinite().all():  # the optimiser step refuses such a gradient
        return torch.full_like(alpha, 1 / len(gram))
    asks = (products.diagonal() > 0).nonzero().flatten()
    if len(asks):
        products = products[asks][:, asks]
        alpha[asks] = _shortest(products / products.diagonal().max())
    return alpha


def _shortest(gram: Tensor) -> Tensor:
    if len(gram) == 2:
        (one, both), (_, two) = gram.tolist()
        apart = one + two - 2 * both
        first = min(1.0, max(0.0, (two - both) / apart)) if apart > EXACT * (one + two) else 0.5
        return torch.tensor([first, 1 - first], dtype=torch.float64)
    found, best = torch.full((len(gram),), 1 / len(gram), dtype=torch.float64), torch.inf
    for size in range(1, len(gram) + 1):
        for support in combinations(range(len(gram)), size):
            alpha = _even(gram, list(support))
            if alpha is not None and (length := (alpha @ gram @ alpha).item()) < best - EXACT:
                found, best = alpha, length
    return found


def _even(gram: Tensor, support: list[int]) -> Tensor | None:
    """Weights on these gradients alone whose sum has equal products with each of them; None if some are negative."""
    size = len(support)
    system = torch.ones(size + 1, size + 1, dtype=torch.float64)
    system[:size, :size], system[size, size] = gram[support][:, support], 0
    goal = torch.zeros(size + 1, dtype=torch.float64)
    goal[size] = 1
    solved = torch.linalg.pinv(system, rtol=1e-12, hermitian=True) @ goal
    if (solved[:size] < -EXACT).any() or (system @ solved - goal).abs().max() > 1e-6:
        return None
    alpha = torch.zeros(len(gram), dtype=torch.float64)
    alpha[support] = solved[:size].clamp(min=0)
    return alpha / alpha.sum()


@dataclass(frozen=True)
class Apart:
    """The same points once per objective. Everything but the advantages is that of the first."""

    sets: Mapping[str, PointSet]

    @property
    def first(self) -> PointSet:
        return next(iter(self.sets.values()))

    @property
    def in_order(self) -> bool:
        return self.first.in_order

    @property
    def indivisible(self) -> int:
        return self.first.indivisible

    def __len__(self) -> int:
        return len(self.first)

    def units(self) -> Sequence[Tensor]:
        return self.first.units()

    def prompts(self) -> Tensor:
        return self.first.prompts()

    def here(self, numbers: Tensor) -> Tensor:
        return self.first.here(numbers)

    def take(self, numbers: Tensor) -> Rows:
        return self.first.take(numbers)

    def total(self, numbers: Tensor) -> float:
        return self.first.total(numbers)


def objectives(points: PointSet) -> dict[str, PointSet]:
    """The point sets that get a gradient each, by objective: the points themselves, unless they are kept apart."""
    return dict(points.sets) if isinstance(points, Apart) else {"": points}


class Gradients:
    """The gradients of one optimiser step, one per objective, and their combination. A single one is left alone."""

    def __init__(self, parameters: Sequence[Tensor], names: Iterable[str]):
        self.parameters, self.names = parameters, list(names)
        self._kept: list[list[Tensor]] = []

    def keep(self) -> None:
        """Take the gradient of the next objective from the parameters, summed over processes."""
        if len(self.names) == 1:
            return
        mine = [torch.zeros_like(each) if each.grad is None else each.grad for each in self.parameters]
        distributed.add_up(mine)
        self._kept.append(mine)
        for each in self.parameters:
            each.grad = None

    def combine(self) -> dict[str, float]:
        """Give the parameters the common descent direction. Returns the weights, and the cosine of each pair.

        The gradients are summed over processes already, so only the first one puts the result in.
        """
        if len(self.names) == 1:
            return {}
        gram = torch.stack([torch.stack([_product(one, other) for other in self._kept]) for one in self._kept])
        alpha, first = common_descent(gram), distributed.rank() == 0
        for number, each in enumerate(self.parameters):
            whole = sum(weight * kept[number] for weight, kept in zip(alpha.tolist(), self._kept, strict=True))
            each.grad = whole if first else torch.zeros_like(each)
        length = gram.diagonal().sqrt()
        cosine = gram / (length[:, None] * length).clamp(min=1e-300)
        pairs = combinations(range(len(self.names)), 2)
        weights = {f"alpha/{name}": value for name, value in zip(self.names, alpha.tolist(), strict=True)}
        return weights | {f"cosine/{self.names[i]}/{self.names[j]}": cosine[i, j].item() for i, j in pairs}


def _product(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The product of two gradients, float64."""
    parts = [(a.double() * b.double()).sum().cpu() for a, b in zip(one, other, strict=True)]
    return torch.stack(parts).sum()
