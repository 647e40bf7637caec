"""Worlds with closed forms to test with, rewards, and `integral`, which computes expectations by quadrature.

`integral` uses only the density of x0, the reward and the noising, in one dimension.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from flowward.verify.worlds import (
    Affine,
    Discrete,
    Function,
    Indicator,
    Linear,
    Mixture,
    Quadratic,
    Reward,
    Reweighted,
    World,
    kl_tilt,
)

close = partial(torch.testing.assert_close, rtol=0)
GRID = (torch.arange(24_000, dtype=torch.float64) + 0.5) / 1000 - 12  # of x0; a reward that jumps does so in between


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def line() -> Mixture:
    """A mixture in one dimension."""
    return Mixture(double(0.2, 0.5, 0.3), double([-1.5], [0.4], [2.0]), double([[0.3]], [[0.8]], [[0.1]]))


def plane(dim: int = 2) -> Mixture:
    """A mixture in two or more dimensions, with tilted ellipses."""
    root = real(3, dim, dim, seed=1)
    covariances = root @ root.mT + 0.05 * torch.eye(dim)
    return Mixture(double(1, 2, 3), 1.5 * real(3, dim, seed=2), covariances)


def atoms(dim: int = 2) -> Discrete:
    return Discrete(real(7, dim, seed=3), torch.arange(1, 8))


REWARDS_1D: dict[str, Reward] = {
    "linear": Linear(double(0.8)),
    "quadratic": Quadratic(double([0.9]), double(0.7)),
    "convex": Quadratic(double([-0.2]), double(0.7)),
    "indicator": Indicator(double(1.0), 0.5),
    "rarer": Indicator(double(1.0), 1.2),
    "below": Affine(Indicator(double(-2.0), -0.4), 3.0, 1.0),
    "affine": Affine(Affine(Linear(double(1.0)), -2.0, 0.3), 0.5, -1.0),
}
REWARDS_2D: dict[str, Reward] = {
    "linear": Linear(double(0.8, -0.3)),
    "quadratic": Quadratic(double([0.9, 0.4], [0.4, 0.7]), double(0.7, 0.2)),
    "saddle": Quadratic(double([0.9, 0.4], [0.4, -0.05]), double(0.7, 0.2)),
    "indicator": Indicator(double(0.6, -1.1), 0.3),
    "affine": Affine(Indicator(double(0.6, -1.1), 0.3), -0.5, 2.0),
}


def worlds() -> dict[str, World]:
    """One of each kind, in the plane."""
    tilted = kl_tilt(plane(), REWARDS_2D["indicator"], 0.5)
    assert isinstance(tilted, Reweighted)
    return {"mixture": plane(), "atoms": atoms(), "reweighted": tilted}


every_world = pytest.mark.parametrize("name", ["mixture", "atoms", "reweighted"])


def integral(world: World, x: float, t: float, *functions: Function) -> list[float]:
    """E[f(x0) | x_t = x] for each f; at t = 1 without condition."""
    log = world.log_prob(GRID[:, None]) - (x - (1 - t) * GRID) ** 2 / (2 * t**2)
    weights = log.softmax(0)
    return [(weights * f(GRID[:, None])).sum().item() for f in functions]


def first(x: Tensor) -> Tensor:
    return x[..., 0]


PLACES = [(0.9, 1.0), (0.5, -0.4), (0.2, 1.3), (1.0, 0.7), (0.1, 0.45)]  # (t, x)
every_place = pytest.mark.parametrize(("t", "x"), PLACES)


def points(t: float, x: float) -> tuple[Tensor, Tensor]:
    return double([x]), double(t)
