"""The closed-form worlds against their definitions: quadrature, Monte Carlo, autograd, and the flow they generate.

`integral` is the referee in one dimension. It knows nothing but the density of x0, the reward and the noising.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from flowward.process.policy import Condition
from flowward.verify.oracle import (
    Affine,
    Discrete,
    Function,
    Gaussian,
    Indicator,
    Linear,
    Mixture,
    Quadratic,
    Reward,
    Reweighted,
    World,
    as_velocity,
    chi_square,
    chi_square_tilt,
    covariance_with_velocity,
    expected_reward,
    kl,
    kl_of_tilt,
    kl_tilt,
    weight_given_noisy,
)

close = partial(torch.testing.assert_close, rtol=0)
GRID = (torch.arange(24_000, dtype=torch.float64) + 0.5) / 1000 - 12  # of x0; a reward that jumps does so in between


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def double(*values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def line() -> Mixture:
    """In one dimension."""
    return Mixture(double(0.2, 0.5, 0.3), double([-1.5], [0.4], [2.0]), double([[0.3]], [[0.8]], [[0.1]]))


def plane(dim: int = 2) -> Mixture:
    """In two dimensions or more, with tilted ellipses."""
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


# What is refused


def test_what_has_no_closed_form_is_refused() -> None:
    event, other = Indicator(double(1.0, 0.0), 0.2), Indicator(double(0.0, 1.0), 0.2)
    tilted = kl_tilt(plane(), event, 1.0)
    refused: dict[str, Callable[[], object]] = {
        "takes any": lambda: expected_reward(plane(), lambda x0: x0[..., 0].sin()),
        "tails": lambda: kl_tilt(plane(), Quadratic(-9 * torch.eye(2), torch.zeros(2)), 1.0),
        "second reweighting": lambda: kl_tilt(tilted, other, 1.0),
        "different directions": lambda: expected_reward(tilted, other),
        "noisy point": lambda: covariance_with_velocity(tilted, event, real(1, 2), 0.5),
        "only the weights of an Indicator": lambda: chi_square_tilt(plane(), REWARDS_2D["linear"], 9.0),
        "at least 0": lambda: chi_square_tilt(plane(), event, 0.01),
        "weights of at least 0": lambda: chi_square_tilt(atoms(), REWARDS_2D["linear"], 0.1),
        "divergence": lambda: kl(plane(), plane()),
        "temperature must be positive": lambda: kl_tilt(plane(), event, 0.0),
        "gamma must be positive": lambda: chi_square_tilt(plane(), event, -1.0),
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
