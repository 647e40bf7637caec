"""Rewards and tilted optima of closed-form worlds against quadrature, Monte Carlo, and other known numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from closed_worlds import (
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

from flowward.verify.worlds import (
    Affine,
    Discrete,
    Function,
    Gaussian,
    Linear,
    Mixture,
    chi_square,
    chi_square_tilt,
    covariance_with_velocity,
    expected_reward,
    kl,
    kl_of_tilt,
    kl_tilt,
    weight_given_noisy,
)

# Rewards and tilts


def test_affine_of_affine() -> None:
    inner = Affine(REWARDS_2D["quadratic"], -2.0, 0.3)
    close(Affine(inner, 0.5, -1.0)(real(4, 2)), 0.5 * inner(real(4, 2)) - 1.0, atol=1e-12)


@pytest.mark.parametrize("name", REWARDS_1D)
@every_place
def test_conditional_moments_of_rewards_on_a_line(name: str, t: float, x: float) -> None:
    """E[R | x_t] and Cov(R, u | x_t), with u = (x_t - x0) / t, against quadrature."""
    world, reward = line(), REWARDS_1D[name]
    value, sample, both = integral(world, x, t, reward, first, lambda x0: reward(x0) * first(x0))
    assert world.posterior(*points(t, x)).expect(reward).value.item() == pytest.approx(value, abs=1e-6)
    found = covariance_with_velocity(world, reward, *points(t, x)).item()
    assert found == pytest.approx(-(both - value * sample) / t, abs=1e-5)


@pytest.mark.parametrize("name", REWARDS_1D)
@every_place
def test_kl_tilt_on_a_line(name: str, t: float, x: float) -> None:
    """v_q = E[w u | x_t] / E[w | x_t] and W_t = E[w | x_t] for w = exp(R / tau) / Z, against quadrature."""
    world, reward, tau = line(), REWARDS_1D[name], 0.8
    q = kl_tilt(world, reward, tau)
    (z,) = integral(world, 0.0, 1.0, lambda x0: (reward(x0) / tau).exp())
    w, wx = integral(
        world, x, t, lambda x0: (reward(x0) / tau).exp() / z, lambda x0: first(x0) * (reward(x0) / tau).exp() / z
    )
    assert weight_given_noisy(q, world, *points(t, x)).item() == pytest.approx(w, rel=1e-5)
    assert q.velocity(*points(t, x)).item() == pytest.approx((x - wx / w) / t, abs=1e-5)


@pytest.mark.parametrize("name", [name for name in REWARDS_1D if name != "below"])  # a direction of its own
def test_means_on_a_line(name: str) -> None:
    """E[R] under the world and under its reweighting by an indicator, against quadrature."""
    world, reward = line(), REWARDS_1D[name]
    event = REWARDS_1D["indicator"]
    plain, inside, share = integral(world, 0.0, 1.0, reward, lambda x0: event(x0) * reward(x0), event)
    assert expected_reward(world, reward) == pytest.approx(plain, abs=1e-6)
    more = math.exp(1 / 0.8) - 1
    q = kl_tilt(world, event, 0.8)
    assert expected_reward(q, reward) == pytest.approx((plain + more * inside) / (1 + more * share), abs=1e-6)


@every_world
@pytest.mark.parametrize("name_of_reward", REWARDS_2D)
def test_means_in_the_plane(name: str, name_of_reward: str) -> None:
    """E[R] against samples of the world itself."""
    world, reward = worlds()[name], REWARDS_2D[name_of_reward]
    values = reward(world.sample(40_000, torch.Generator().manual_seed(5)))
    error = values.std().item() / math.sqrt(len(values))
    assert expected_reward(world, reward) == pytest.approx(values.mean().item(), abs=4.5 * error)


@every_world
@pytest.mark.parametrize("name_of_reward", REWARDS_2D)
def test_density_of_a_kl_tilt(name: str, name_of_reward: str) -> None:
    """log q - log p - R / tau is the same everywhere: -log Z, and KL(q || p) = E_q[R] / tau - log Z."""
    world, reward, tau = worlds()[name], REWARDS_2D[name_of_reward], 0.9
    if name == "reweighted" and name_of_reward in ("indicator", "affine"):
        reward = REWARDS_2D["saddle"]  # a second reweighting is refused
    q = kl_tilt(world, reward, tau)
    if isinstance(world, Discrete):
        assert isinstance(q, Discrete)
        x, excess = world.atoms, (q.weights / world.weights).log()
    else:
        x = real(25, 2)
        excess = q.log_prob(x) - world.log_prob(x)
    minus_log_z = excess - reward(x) / tau
    close(minus_log_z, minus_log_z[:1].expand_as(minus_log_z), atol=1e-9)
    divergence = expected_reward(q, reward) / tau + minus_log_z[0].item()
    assert kl_of_tilt(world, reward, tau) == pytest.approx(divergence, abs=1e-9)
    assert divergence > 0


def test_kl_tilt_is_the_best() -> None:
    """No other law has a higher E_q[R] - tau KL(q || p); the Gaussian and the discrete one are varied in all ways."""
    tau, p = 0.7, Gaussian(plane().means[1], plane().covariances[1])
    for reward in (REWARDS_2D["linear"], REWARDS_2D["quadratic"]):
        q = kl_tilt(p, reward, tau)
        assert isinstance(q, Mixture)
        best = expected_reward(q, reward) - tau * kl(q, p)
        assert kl(q, p) == pytest.approx(kl_of_tilt(p, reward, tau), abs=1e-10)
        for seed in range(20):
            shift, bend = 0.05 * real(2, seed=seed), torch.eye(2) + 0.05 * real(2, 2, seed=seed + 20)
            other = Gaussian(q.means[0] + shift, bend @ q.covariances[0] @ bend.T)
            assert expected_reward(other, reward) - tau * kl(other, p) < best

    world, values = atoms(), real(7, seed=6)
    table: Callable[[Tensor], Tensor] = lambda x0: values  # noqa: E731  any function of the atoms
    tilted = kl_tilt(world, table, tau)
    assert isinstance(tilted, Discrete)
    best = expected_reward(tilted, table) - tau * kl(tilted, world)
    for seed in range(20):
        near = Discrete(world.atoms, tilted.weights * (0.05 * real(7, seed=seed)).exp())
        assert expected_reward(near, table) - tau * kl(near, world) < best


def test_chi_square_tilt_is_the_best() -> None:
    """The same for E_q[R] - gamma/2 chi^2(q || p), together with the gain in reward that the notes give."""
    world, reward, gamma = atoms(), REWARDS_2D["linear"], 3.0
    q = chi_square_tilt(world, reward, gamma)
    assert isinstance(q, Discrete)
    best = expected_reward(q, reward) - gamma / 2 * chi_square(q, world)
    for seed in range(20):
        near = Discrete(world.atoms, q.weights * (0.05 * real(7, seed=seed)).exp())
        assert expected_reward(near, reward) - gamma / 2 * chi_square(near, world) < best
    gap = reward(world.atoms) - expected_reward(world, reward)
    variance = (world.weights @ gap**2).item()
    gain = expected_reward(q, reward) - expected_reward(world, reward)
    assert gain == pytest.approx(variance / gamma, abs=1e-12)
    assert chi_square(q, world) == pytest.approx(variance / gamma**2, abs=1e-12)


@pytest.mark.parametrize("name", ["mixture", "atoms"])
def test_chi_square_tilt_is_the_minimiser_of_advantageflow(name: str) -> None:
    """v_q = v_p + Cov(R, u | x_t) / (gamma + E[R - E R | x_t])."""
    world, reward, gamma = worlds()[name], REWARDS_2D["indicator"], 1.1
    x, t = 2 * real(30, 2), torch.linspace(0.05, 1, 30, dtype=torch.float64)
    centred = Affine(reward, 1.0, -expected_reward(world, reward))
    step = covariance_with_velocity(world, reward, x, t) / (gamma + world.given(x, t, centred).value[:, None])
    q = chi_square_tilt(world, reward, gamma)
    close(q.velocity(x, t) - world.velocity(x, t), step, atol=1e-9)
    close(weight_given_noisy(q, world, x, t), 1 + world.given(x, t, centred).value / gamma, atol=1e-9)
    share = expected_reward(world, reward)
    assert expected_reward(q, reward) - share == pytest.approx(share * (1 - share) / gamma, abs=1e-12)
    assert chi_square(q, world) == pytest.approx(share * (1 - share) / gamma**2, abs=1e-12)


def test_minimiser_of_advantageflow_for_an_unbounded_reward() -> None:
    """There is no q, but an expectation still has the minimiser's velocity, v + Cov / (gamma + E[A | x_t])."""
    world, reward, gamma = line(), Linear(double(1.0)), 2.5
    t, x = torch.linspace(0.4, 1, 9, dtype=torch.float64), torch.linspace(-1, 2, 9, dtype=torch.float64)[:, None]
    mean = expected_reward(world, reward)
    found = world.given(x, t, Affine(reward, 1 / gamma, 1 - mean / gamma)).reweighted().velocity
    divisor = gamma + world.given(x, t, reward).value - mean
    step = covariance_with_velocity(world, reward, x, t) / divisor[:, None]
    close(found, world.velocity(x, t) + step, atol=1e-10)


def test_divergences_of_gaussians() -> None:
    """Against quadrature on a line, and unchanged by a linear map in the plane."""
    q, p = Gaussian(double(0.3), double([0.5])), Gaussian(double(-0.2), double([0.9]))
    ratio: Function = lambda x0: q.log_prob(x0) - p.log_prob(x0)  # noqa: E731
    (expected,) = integral(q, 0.0, 1.0, ratio)
    assert kl(q, p) == pytest.approx(expected, abs=1e-9)
    (expected,) = integral(p, 0.0, 1.0, lambda x0: (2 * ratio(x0)).exp())
    assert chi_square(q, p) == pytest.approx(expected - 1, abs=1e-9)

    wide = Gaussian(double(-0.2, 0.1), double([0.9, 0.0], [0.0, 0.8]))
    slim = Gaussian(double(0.3, 0.1), double([0.5, 0.0], [0.0, 0.8]))
    lean = double([1.0, 0.7], [-0.4, 2.0])
    turned = [Gaussian(lean @ w.means[0], lean @ w.covariances[0] @ lean.T) for w in (slim, wide)]
    assert kl(*turned) == pytest.approx(kl(q, p), abs=1e-9)
    assert chi_square(*turned) == pytest.approx(chi_square(q, p), abs=1e-9)
    with pytest.raises(ValueError, match="infinite"):
        chi_square(Gaussian(double(0.0), double([2.0])), Gaussian(double(0.0), double([1.0])))


# Numbers from the notes


@pytest.mark.parametrize(
    ("t", "x", "v_old", "step", "weight"),
    [
        (0.9, 1.0, 0.693288, -0.881921, 1.095413),
        (0.5, -0.4, -0.541463, -0.975610, 0.481087),
        (0.2, 1.3, -1.035587, -0.355872, 2.867329),
    ],
)
def test_numbers_of_the_gaussian_tilt(t: float, x: float, v_old: float, step: float, weight: float) -> None:
    """N(0.3, 0.8^2), R = x and tau = 0.8; also Cov(A, u | x_t) = -s^2 t / S for A = x0 - m."""
    p = Gaussian(double(0.3), double([0.64]))
    q = kl_tilt(p, Linear(double(1.0)), 0.8)
    at = points(t, x)
    assert p.velocity(*at).item() == pytest.approx(v_old, abs=1e-6)
    assert (q.velocity(*at) - p.velocity(*at)).item() == pytest.approx(step, abs=1e-6)
    assert weight_given_noisy(q, p, *at).item() == pytest.approx(weight, abs=1e-6)
    covariance = covariance_with_velocity(p, Affine(Linear(double(1.0)), 1.0, -0.3), *at).item()
    assert covariance == pytest.approx(-0.64 * t / ((1 - t) ** 2 * 0.64 + t**2), abs=1e-12)
    assert covariance == pytest.approx(0.8 * step, abs=1e-6)


def test_numbers_of_the_population_minimiser() -> None:
    """FlowAWR tends to v_old + W_t (v_q - v_old), not to v_q: mu = .2, s = .7, w = exp(1.5 x) / Z at t = .4, x = .1."""
    p = Gaussian(double(0.2), double([0.49]))
    q = kl_tilt(p, Linear(double(1.5)), 1.0)
    at = points(0.4, 0.1)
    weight, v_old, v_q = (f.item() for f in (weight_given_noisy(q, p, *at), p.velocity(*at), q.velocity(*at)))
    assert weight == pytest.approx(0.72958, abs=5e-6)
    assert v_old + weight * (v_q - v_old) == pytest.approx(-0.8439, abs=5e-5)
    assert v_q == pytest.approx(-1.0803, abs=5e-5)
