"""The closed-form worlds against their definitions: quadrature, autograd, and the flow they generate."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from closed_worlds import (
    GRID,
    REWARDS_1D,
    REWARDS_2D,
    atoms,
    close,
    double,
    every_place,
    every_world,
    first,
    integral,
    line,
    plane,
    points,
    real,
    worlds,
)
from torch import Tensor

from flowward.process.policy import Condition
from flowward.verify.worlds import (
    Discrete,
    Gaussian,
    Indicator,
    Linear,
    Mixture,
    Quadratic,
    Reweighted,
    World,
    as_velocity,
    chi_square_tilt,
    covariance_with_velocity,
    expected_reward,
    kl,
    kl_of_tilt,
    kl_tilt,
)

# The worlds themselves


@every_world
@pytest.mark.parametrize("t", [0.05, 0.3, 0.7, 0.95])
def test_velocity_is_what_regression_finds(name: str, t: float) -> None:
    """E[(u - v(x_t, t)) h(x_t)] = 0 for every function h, so here for constants, lines, waves and bumps."""
    world, rng = worlds()[name], torch.Generator().manual_seed(4)
    x0 = world.sample(40_000, rng)
    eps = torch.randn(x0.shape, generator=rng, dtype=torch.float64)
    x = (1 - t) * x0 + t * eps
    tests = torch.stack([torch.ones(len(x)), *x.T, *(3 * x).sin().T, (-(x**2).sum(1)).exp()], 1)
    errors = (eps - x0 - world.velocity(x, t))[:, None] * tests[..., None]
    assert (errors.mean(0).abs() < 4.5 * errors.std(0) / math.sqrt(len(x))).all()


@every_world
def test_score_is_the_gradient_and_gives_the_velocity(name: str) -> None:
    """s = grad log p_t by autograd, and v = -(x + t s) / (1 - t)."""
    event = Indicator(double(0.6, -1.1, 0.4), 0.3)
    world = {"mixture": plane(3), "atoms": atoms(3), "reweighted": Reweighted(plane(3), event, 0.2, 1.0)}[name]
    x = (2 * real(40, 3)).requires_grad_()
    t = torch.linspace(0.05, 0.95, 40, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(world.log_prob(x, t).sum(), x)
    score, velocity = world.score(x, t), world.velocity(x, t)
    close(score, gradient, rtol=1e-9, atol=1e-9)
    close(velocity, -(x + t[:, None] * score) / (1 - t[:, None]), rtol=1e-9, atol=1e-9)


@every_world
def test_density_of_noisy_points_integrates_to_one(name: str) -> None:
    axis = torch.linspace(-9, 9, 181, dtype=torch.float64)
    for t in [0.2, 0.6, 1.0]:
        total = worlds()[name].log_prob(torch.cartesian_prod(axis, axis), t).exp().sum() * 0.1**2
        assert total.item() == pytest.approx(1, abs=1e-4 if name == "reweighted" else 1e-9)


@every_world
def test_ends_of_time(name: str) -> None:
    """At t = 1, v = x - E[x0]; at t = 0, where there is a density, v = -x; and nothing jumps on the way there."""
    world, x = worlds()[name], real(20, 2)
    close(world.velocity(x, 1.0), x - double(*centre(world)), atol=1e-12)
    close(world.velocity(x, 1 - 1e-9), world.velocity(x, 1.0), atol=1e-7)
    close(world.score(x, 1.0), -x, atol=1e-12)
    if name != "atoms":
        close(world.velocity(x, 0.0), -x, atol=1e-12)
        close(world.velocity(x, 1e-9), -x, atol=1e-6)
        close(world.score(x, 1e-9), world.score(x, 0.0), atol=1e-5)
    far = 1e3 * x
    for t in [1e-8, 1e-3, 0.5, 1 - 1e-8, 1.0]:
        assert world.velocity(far, t).isfinite().all() and world.score(far, t).isfinite().all()


def centre(world: World) -> list[float]:
    """E[x0] in the plane."""
    return [expected_reward(world, Linear(axis)) for axis in torch.eye(2)]


def flow(world: World, x: Tensor, steps: int = 200) -> Tensor:
    """x at t = 1 carried to t = 0 along the exact velocity, by Runge and Kutta's fourth-order rule.

    Times are crowded towards 0, where the velocity of a narrow component turns fastest.
    """
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64) ** 2
    for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
        h = s - t
        k1 = world.velocity(x, t)
        k2 = world.velocity(x + h / 2 * k1, t + h / 2)
        k3 = world.velocity(x + h / 2 * k2, t + h / 2)
        k4 = world.velocity(x + h * k3, s)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x


def test_flow_of_a_gaussian_is_its_root() -> None:
    """x_1 goes to mean + C^(1/2) x_1, whatever the dimension."""
    world, x = Gaussian(plane().means[0], plane().covariances[0]), real(9, 2)
    values, vectors = torch.linalg.eigh(world.covariances[0])
    close(flow(world, x), world.means[0] + x @ (vectors * values.sqrt()) @ vectors.T, atol=1e-7)


@pytest.mark.parametrize("tilted", [False, True])
def test_flow_on_a_line_carries_quantiles(tilted: bool) -> None:
    """The flow keeps the order of points, so that P(x0 < flow(x)) = P(noise < x)."""
    world: World = kl_tilt(line(), REWARDS_1D["indicator"], 0.5) if tilted else line()
    x = torch.linspace(-2.5, 2.5, 21, dtype=torch.float64)[:, None]
    below = world.log_prob(GRID[:, None]).exp().cumsum(0) * (GRID[1] - GRID[0])
    reached = torch.searchsorted(GRID, flow(world, x)[:, 0])
    close(below[reached], torch.special.ndtr(x[:, 0]), atol=2e-3)


def test_flow_in_the_plane_has_the_right_moments() -> None:
    world, n = plane(), 4000
    end = flow(world, torch.cat([z := real(n // 2, 2), -z]), steps=40)
    mean = double(*centre(world))
    spread = world.weights[:, None, None] * (world.covariances + (z := world.means - mean)[..., None] * z[:, None])
    close(end.mean(0), mean, atol=0.1)
    close(end.T.cov(), spread.sum(0), atol=0.2)


@every_place
def test_posterior_on_a_line(t: float, x: float) -> None:
    """Mean and variance of x0 given x_t, against quadrature."""
    posterior = line().posterior(*points(t, x))
    mean, square = integral(line(), x, t, first, lambda x0: first(x0) ** 2)
    assert posterior.mean.item() == pytest.approx(mean, abs=1e-8)
    assert posterior.covariance.item() == pytest.approx(square - mean**2, abs=1e-8)


@pytest.mark.parametrize("world", [plane(3), atoms(3)])
def test_posterior_covariance_is_the_slope_of_the_mean(world: Mixture | Discrete) -> None:
    """d E[x0 | x_t] / d x = (1 - t) / t^2 Cov(x0 | x_t), which also gives Cov(a . x0, u | x_t) = -Cov(x0 | x_t) a / t.

    In three dimensions, where eigenvectors are not their own transpose by chance.
    """
    x, t, a = real(3), 0.6, real(3, seed=7)
    posterior = world.posterior(x[None], t)
    slope = torch.autograd.functional.jacobian(lambda x: world.posterior(x[None], t).mean[0], x)
    close(slope, (1 - t) / t**2 * posterior.covariance[0], atol=1e-10)
    found = covariance_with_velocity(world, Linear(a), x[None], t)[0]
    close(found, -posterior.covariance[0] @ a / t, atol=1e-12)


def test_narrow_mixture_is_a_discrete_world() -> None:
    """Two separate ways of computing agree where Gaussians shrink to atoms."""
    exact, x, t = atoms(), real(30, 2), torch.linspace(0.1, 1, 30, dtype=torch.float64)
    narrow = Mixture(exact.weights, exact.atoms, 1e-13 * torch.eye(2).expand(7, 2, 2))
    close(narrow.log_prob(x, t), exact.log_prob(x, t), atol=1e-8)
    close(narrow.velocity(x, t), exact.velocity(x, t), atol=1e-8)
    close(narrow.posterior(x, t).weights, exact.posterior(x, t).weights, atol=1e-8)
    close(narrow.posterior(x, t).covariance, exact.posterior(x, t).covariance, atol=1e-8)
    for reward in REWARDS_2D.values():
        q, q_exact = kl_tilt(narrow, reward, 0.7), kl_tilt(exact, reward, 0.7)
        close(q.velocity(x, t), q_exact.velocity(x, t), atol=1e-7)
        assert expected_reward(q, reward) == pytest.approx(expected_reward(q_exact, reward), abs=1e-7)
        assert kl_of_tilt(narrow, reward, 0.7) == pytest.approx(kl(q_exact, exact), abs=1e-7)
        covariance = covariance_with_velocity(exact, reward, x, t)
        close(covariance_with_velocity(narrow, reward, x, t), covariance, atol=1e-7)


@every_world
def test_as_velocity_keeps_shape_and_dtype(name: str) -> None:
    x, nobody = real(5, 1, 2, 1).float(), Condition({"id": torch.zeros(1)})
    v = as_velocity(worlds()[name])(x, torch.full((5,), 0.4), nobody)
    assert v.shape == x.shape and v.dtype == torch.float32
    close(v.double().flatten(1), worlds()[name].velocity(x.flatten(1), 0.4), atol=1e-5)


# What is refused


def test_what_has_no_closed_form_is_refused() -> None:
    event, other = Indicator(double(1.0, 0.0), 0.2), Indicator(double(0.0, 1.0), 0.2)
    tilted = kl_tilt(plane(), event, 1.0)
    refused: dict[str, Callable[[], object]] = {
        "accepts any function": lambda: expected_reward(plane(), lambda x0: x0[..., 0].sin()),
        "tails": lambda: kl_tilt(plane(), Quadratic(-9 * torch.eye(2), torch.zeros(2)), 1.0),
        "second reweighting": lambda: kl_tilt(tilted, other, 1.0),
        "different directions": lambda: expected_reward(tilted, other),
        "noisy point": lambda: covariance_with_velocity(tilted, event, real(1, 2), 0.5),
        "reweighted by an Affine function of an Indicator": lambda: chi_square_tilt(plane(), REWARDS_2D["linear"], 9.0),
        "at least 0": lambda: chi_square_tilt(plane(), event, 0.01),
        "weights of a world must be at least 0": lambda: chi_square_tilt(atoms(), REWARDS_2D["linear"], 0.1),
        "divergence": lambda: kl(plane(), plane()),
        "temperature must be a positive number": lambda: kl_tilt(plane(), event, 0.0),
        "gamma must be a positive number": lambda: chi_square_tilt(plane(), event, -1.0),
        "1 in 10,000": lambda: Reweighted(plane(), Indicator(double(1.0, 0.0), 99.0), 0.0, 1.0).sample(
            1, torch.Generator()
        ),
        "atoms have no density": lambda: atoms().log_prob(real(1, 2)),
        "singular covariance": lambda: Gaussian(torch.zeros(2), torch.diag(double(1, 0))).velocity(real(1, 2), 0.0),
        "must be symmetric, without": lambda: Gaussian(torch.zeros(2), torch.diag(double(1, -1))),
        "reward must be symmetric": lambda: Quadratic(double([1.0, 2.0], [0.0, 1.0]), torch.zeros(2)),
        "needs weights": lambda: Mixture(torch.ones(2), torch.zeros(3, 2), torch.eye(2).expand(3, 2, 2)),
        "positive, finite sum": lambda: Discrete(torch.zeros(2, 1), torch.zeros(2)),
    }
    for sentence, act in refused.items():
        with pytest.raises(ValueError, match=sentence):
            act()
