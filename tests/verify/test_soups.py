"""Rewarded soups on Gaussians: adding up changes of the velocity is exact for linear rewards alone."""

from __future__ import annotations

import pytest
import torch
from gaussian_flow import gaussian
from torch import Tensor

from flowward.learning.mixtures import lattice
from flowward.verify.worlds.mixture import Gaussian
from flowward.verify.worlds.rewards import Linear, Quadratic
from flowward.verify.worlds.world import World

BASE = Gaussian(torch.zeros(1), torch.eye(1))  # N(0, 1)
TOWARDS_ONE = Quadratic(torch.eye(1), torch.ones(1))  # -(x - 1)^2 / 2
RISING = Linear(torch.ones(1))
PLACES = (  # T55: t, x, the change of the velocity at w = (1/2, 1/2) to the optimum, and to the soup
    (0.5, 0.5, -0.600000, -0.666667),
    (0.9, 1.0, -0.689895, -0.791187),
    (0.2, 1.3, -0.067227, -0.073529),
)


def tilted(world: World, rewards: list[Linear | Quadratic], weights: tuple[float, ...]) -> World:
    """q proportional to p exp(sum_k w_k R_k)."""
    for reward, weight in zip(rewards, weights, strict=True):
        world = world.tilt(reward, weight)[0] if weight else world
    return world


def soup(world: World, rewards: list[Linear | Quadratic], weights: tuple[float, ...], x: Tensor, t: float) -> Tensor:
    """v + sum_k w_k (v_k - v), the velocities of the optima of single rewards."""
    base = world.velocity(x, t)
    changes = [world.tilt(reward, 1.0)[0].velocity(x, t) - base for reward in rewards]
    return base + sum(weight * change for weight, change in zip(weights, changes, strict=True))


def test_t54_soups_of_linear_rewards_are_exact() -> None:
    """T54: on a Gaussian, v_w is additive to 1e-12 for every w."""
    stream = torch.Generator().manual_seed(0)
    root = torch.randn(2, 2, generator=stream).double()
    world = Gaussian(torch.tensor([0.3, -0.2]), root @ root.T + 0.1 * torch.eye(2))
    rewards: list[Linear | Quadratic] = [Linear(torch.randn(2, generator=stream)) for _ in range(3)]
    x = torch.randn(5, 2, generator=stream).double()
    for weights in lattice(3, 4):
        for t in (0.05, 0.5, 0.95):
            exact = tilted(world, rewards, weights).velocity(x, t)
            torch.testing.assert_close(soup(world, rewards, weights, x, t), exact, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize(("t", "x", "exact", "mixed"), PLACES)
def test_t55_a_quadratic_and_a_linear_reward_are_not(t: float, x: float, exact: float, mixed: float) -> None:
    """T55, and both by the velocity of a Gaussian: N(1/2, 1/2) and N(1, 1) at the corners, N(2/3, 2/3) between."""
    place, rewards = torch.tensor([[x]], dtype=torch.float64), [TOWARDS_ONE, RISING]
    base = BASE.velocity(place, t).item()
    at_w = tilted(BASE, rewards, (0.5, 0.5)).velocity(place, t).item()
    of_soup = soup(BASE, rewards, (0.5, 0.5), place, t).item()
    assert (at_w - base, of_soup - base) == (pytest.approx(exact, abs=5e-7), pytest.approx(mixed, abs=5e-7))
    corners = [gaussian(0.5**0.5, 0.5)(place, t).item(), gaussian(1.0, 1.0)(place, t).item()]
    assert at_w == pytest.approx(gaussian((2 / 3) ** 0.5, 2 / 3)(place, t).item(), abs=1e-12)
    assert of_soup == pytest.approx(sum(corners) / 2, abs=1e-12)
