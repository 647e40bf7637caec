"""AdvantageFlow against closed forms: what its loss pulls towards over all samples, and how hard.

Minimisers are never derived here: they are solved for from gradients of the library's loss (see `minimiser`), over
all that a noisy point may have come from. What they must equal is written from the theory: the velocities and
posteriors of a Gaussian, or of a distribution on finitely many samples, where both are exact.
Numbers in names name laws.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from losses import close, gradient_at, real
from torch import Tensor

from flowward.algorithms.objectives import advantageflow
from flowward.learning.credit import CentredRMS
from flowward.process.flow import clean, interpolate
from flowward.process.rollout import Sampler
from flowward.process.solvers import euler

M, S = 0.3, 0.8  # the old policy is N(M, S^2)
K, TAU = 1.0, 0.8  # rewards are R = K x0, and TAU their temperature
PLACES = [(0.9, 1.0), (0.5, -0.4), (0.2, 1.3), (1.0, 0.7), (0.05, 0.1)]  # (t, x)


def places() -> tuple[Tensor, Tensor]:
    """x [Z, 1] and t [Z]."""
    t, x = torch.tensor(PLACES, dtype=torch.float64).T
    return x[:, None], t


def variance(t: Tensor, s: float = S) -> Tensor:
    """Of x_t."""
    return (1 - t) ** 2 * s**2 + t**2


def gaussian_velocity(x: Tensor, t: Tensor, m: float = M, s: float = S) -> Tensor:
    """E[u | x_t] for x0 ~ N(m, s^2); x [Z, 1], t [Z]."""
    t = t[:, None]
    return -m + (t - (1 - t) * s**2) * (x - (1 - t) * m) / variance(t, s)


def gaussian_posterior(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes [Z, Q, 1] of x0 given x_t = x, and their weights [Z, Q]."""
    nodes, weights = (torch.from_numpy(a) for a in np.polynomial.hermite_e.hermegauss(60))
    t = t[:, None]
    centre = M + (1 - t) * S**2 * (x - (1 - t) * M) / variance(t)
    x0 = centre + S * t / variance(t).sqrt() * nodes
    return x0[..., None], (weights / weights.sum()).expand_as(x0)


def tilt(x0: Tensor) -> Tensor:
    """w = exp(R / TAU), normalised under the old policy: the density of the KL-optimal policy against the old."""
    return (K / TAU * (x0 - M) - (K * S / TAU) ** 2 / 2).exp()


def optimal_step(t: Tensor) -> Tensor:
    """v* - v_old for the KL-optimal policy N(M + K S^2 / TAU, S^2): the same at every x, [Z, 1]."""
    return -(K * S**2 / TAU * t / variance(t))[:, None]


def atoms(points: int = 6, number: int = 9, dim: int = 3) -> tuple[Tensor, ...]:
    """A policy that is uniform on finitely many samples: x [Z, D], t [Z], x0 [Z, Q, D], and rewards [Q]."""
    x0, x, rewards = real(number, dim, seed=1), real(points, dim, seed=2), real(number, seed=3)
    return x, torch.linspace(0.4, 1, points, dtype=torch.float64), x0.expand(points, -1, -1), rewards


def atoms_posterior(x: Tensor, t: Tensor, x0: Tensor, prior: Tensor) -> Tensor:
    """p(x0 | x_t = x), [Z, Q], under prior weights [Q]."""
    distance = (x[:, None] - (1 - t)[:, None, None] * x0).square().sum(-1)
    return (prior.log() - distance / (2 * t[:, None] ** 2)).softmax(1)


def velocity_of(x: Tensor, t: Tensor, x0: Tensor, p: Tensor) -> Tensor:
    """E[u | x_t = x] under posterior weights p [Z, Q], [Z, D]; u = (x - x0) / t."""
    return (x - (p[..., None] * x0).sum(1)) / t[:, None]


def minimiser(
    x: Tensor,
    t: Tensor,
    x0: Tensor,
    p: Tensor,
    advantage: Tensor,
    v_old: Tensor | None,
    v_ref: Tensor | None = None,
    **setting: Any,
) -> Tensor:
    """The v [Z, D] that minimises the library's loss averaged over x0 [Z, Q, D] with weights p [Z, Q].

    Gradients of a quadratic are linear, so two of them find the root; a third one checks it.
    """
    count = x0.shape[1]

    def repeated(a: Tensor | None) -> Any:  # None stays None
        return None if a is None else a.repeat_interleave(count, 0)

    def gradient(v: Tensor) -> Tensor:
        v = v.requires_grad_()
        loss = advantageflow(
            repeated(v),
            repeated(v_old),
            repeated(v_ref),
            repeated(x),
            repeated(t),
            x0.flatten(0, 1),
            advantage.expand(len(x), count).flatten(),
            **setting,
        )
        return torch.autograd.grad((p.flatten() * loss).sum(), v)[0]

    at_zero = gradient(torch.zeros_like(x))
    root = -at_zero / (gradient(torch.ones_like(x)) - at_zero)
    close(gradient(root.clone()), torch.zeros_like(x), atol=1e-10)
    return root


def test_closed_forms_hold() -> None:
    """The Gaussian formulas of this file against tabulated numbers and against each other."""
    x, t = places()
    x0, p = gaussian_posterior(x, t)
    close(velocity_of(x, t, x0, p), gaussian_velocity(x, t), atol=1e-12)
    assert gaussian_velocity(x, t)[:3, 0].tolist() == pytest.approx([0.693288, -0.541463, -1.035587], abs=1e-6)
    assert optimal_step(t)[:3, 0].tolist() == pytest.approx([-0.881921, -0.975610, -0.355872], abs=1e-6)
    assert (p * tilt(x0[..., 0])).sum(1)[:3].tolist() == pytest.approx([1.095413, 0.481087, 2.867329], abs=1e-6)
    close(gaussian_velocity(x, t, M + K * S**2 / TAU) - gaussian_velocity(x, t), optimal_step(t), atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, "1-A"])
def test_05_exact_advantage_gives_the_optimal_velocity(gamma: float | str) -> None:
    """With a = w / W_t - 1, W_t = E[w | x_t], both gammas step by Cov(w, u | x_t) / W_t = -(K S^2 / TAU) t / S_t."""
    x, t = places()
    x0, p = gaussian_posterior(x, t)
    w = tilt(x0[..., 0])
    a = w / (p * w).sum(1, keepdim=True) - 1
    v_old = gaussian_velocity(x, t)
    step = minimiser(x, t, x0, p, a, v_old, gamma=1 - a.flatten() if gamma == "1-A" else gamma, lam=0.0) - v_old
    close(step, optimal_step(t), atol=1e-8)


def test_05_optimal_step_is_a_value_gradient() -> None:
    """v* - v_old = -(t / (1 - t)) d/dx log W_t, by a central difference."""
    x, t = (a[[0, 1, 2, 4]] for a in places())  # t < 1

    def value(x: Tensor) -> Tensor:
        x0, p = gaussian_posterior(x, t)
        return (p * tilt(x0[..., 0])).sum(1).log()

    slope = (value(x + 1e-4) - value(x - 1e-4)) / 2e-4
    close(-(t / (1 - t) * slope)[:, None], optimal_step(t), atol=1e-5)


def test_07_gamma_one_with_the_tilt_gives_the_optimal_velocity() -> None:
    """A = w - 1 and gamma = 1 weigh every sample by w."""
    x, t = places()
    x0, p = gaussian_posterior(x, t)
    v_old = gaussian_velocity(x, t)
    best = minimiser(x, t, x0, p, tilt(x0[..., 0]) - 1, v_old, gamma=1.0, lam=0.0)
    close(best, v_old + optimal_step(t), atol=1e-10)


@pytest.mark.parametrize("gamma", [1.1, 5.0])
def test_08_constant_gamma_fits_a_tilted_policy(gamma: float) -> None:
    """The minimiser is the velocity of q proportional to (gamma + A) pi_old, clipped advantages and all."""
    x, t, x0, rewards = atoms()
    a = CentredRMS()(rewards, torch.zeros(len(rewards), dtype=torch.int64))
    assert a.abs().max() == 1  # something is clipped,
    assert a.mean().abs() > 1e-3  # so that the mean is no longer 0
    prior = torch.full_like(rewards, 1 / len(rewards))
    p = atoms_posterior(x, t, x0, prior)
    best = minimiser(x, t, x0, p, a, velocity_of(x, t, x0, p), gamma=gamma, lam=0.0)
    close(best, velocity_of(x, t, x0, atoms_posterior(x, t, x0, (gamma + a) * prior)), atol=1e-10)


def test_09_gamma_one_minus_a_with_linear_advantages() -> None:
    """Unclipped A = (K / TAU) (x0 - M) reaches v* exactly, although A < -1 occurs."""
    x, t = places()
    x0, p = gaussian_posterior(x, t)
    a = K / TAU * (x0[..., 0] - M)
    assert a.min() < -1
    v_old = gaussian_velocity(x, t)
    close(minimiser(x, t, x0, p, a, v_old, gamma=1 - a.flatten(), lam=0.0), v_old + optimal_step(t), atol=1e-8)


def test_10_reference_blends() -> None:
    """alpha v_q + (1 - alpha) v_ref, alpha = (gamma + E[A|z]) / (gamma + lambda + E[A|z])."""
    x, t, x0, rewards = atoms()
    a, gamma, lam = rewards.clamp(-1, 1), 1.1, 0.4
    prior = torch.full_like(rewards, 1 / len(rewards))
    p = atoms_posterior(x, t, x0, prior)
    v_old, v_ref = velocity_of(x, t, x0, p), real(*x.shape, seed=9)
    v_q = velocity_of(x, t, x0, atoms_posterior(x, t, x0, (gamma + a) * prior))
    held = (gamma + p @ a)[:, None]
    alpha = held / (held + lam)
    close(minimiser(x, t, x0, p, a, v_old, v_ref, gamma=gamma, lam=lam), alpha * v_q + (1 - alpha) * v_ref, atol=1e-10)


def test_10_reference_with_gamma_one_minus_a() -> None:
    """v_old + (Cov(A, u | z) + lambda (v_ref - v_old)) / (1 + lambda)."""
    x, t, x0, rewards = atoms()
    a, lam = rewards.clamp(-1, 1), 0.4
    p = atoms_posterior(x, t, x0, torch.full_like(rewards, 1 / len(rewards)))
    v_old, v_ref = velocity_of(x, t, x0, p), real(*x.shape, seed=9)
    u = (x[:, None] - x0) / t[:, None, None]
    covariance = ((p * (a - (p @ a)[:, None]))[..., None] * u).sum(1)
    best = minimiser(x, t, x0, p, a, v_old, v_ref, gamma=(1 - a).repeat(len(x)), lam=lam)
    close(best, v_old + (covariance + lam * (v_ref - v_old)) / (1 + lam), atol=1e-10)


def target_policy(a: Tensor, prior: Tensor, gamma: float) -> Tensor:
    """The policy [Q] that the loss fits, read off its minimiser.

    With one-hot samples the clean prediction at pure noise, where x_t says nothing about x0, is a probability vector.
    """
    x, t = real(1, len(a)), torch.ones(1, dtype=torch.float64)
    x0 = torch.eye(len(a), dtype=torch.float64)[None]
    p = prior[None]
    best = minimiser(x, t, x0, p, a, velocity_of(x, t, x0, p), gamma=gamma, lam=0.0)
    return clean(x, t, best)[0]


@pytest.mark.parametrize("gamma", [1.1, 3.0])
def test_11_target_policy(gamma: float) -> None:
    """Its reward gain, its chi-square distance, and that no other policy is better at E[A] - gamma/2 chi^2."""
    rewards, prior = real(7, seed=3), real(7, seed=4).softmax(0)
    a = rewards.clamp(-1, 1)
    q = target_policy(a, prior, gamma)
    assert q.sum().item() == pytest.approx(1, abs=1e-12)
    average = prior @ a
    covariance = prior @ (a * rewards) - average * (prior @ rewards)
    close(q @ rewards - prior @ rewards, covariance / (gamma + average), atol=1e-10)
    spread = prior @ (a - average) ** 2

    def chi2(policy: Tensor) -> Tensor:
        return prior @ (policy / prior - 1) ** 2

    close(chi2(q), spread / (gamma + average) ** 2, atol=1e-10)

    # q maximises E[A] - (gamma + E_old[A]) / 2 chi^2: its gradient is the same for every sample (they sum to 1).
    slope = a - (gamma + average) * (q / prior - 1)
    close(slope, slope[0].expand(7), atol=1e-10)

    def score(policy: Tensor) -> Tensor:
        return policy @ a - (gamma + average) / 2 * chi2(policy)

    assert all(score(q) >= score(other.softmax(0)) for other in q.log() + 0.1 * real(200, 7))


def test_12_step_bound() -> None:
    """|v+ - v_old| <= sd(A|z) sd(u|z) / (gamma + E[A|z]) at every noisy point."""
    x, t, x0, rewards = atoms(points=200)
    a = rewards.clamp(-1, 1)
    p = atoms_posterior(x, t, x0, torch.full_like(rewards, 1 / len(rewards)))
    v_old = velocity_of(x, t, x0, p)
    step = minimiser(x, t, x0, p, a, v_old, gamma=1.1, lam=0.0) - v_old
    u = (x[:, None] - x0) / t[:, None, None]
    sd_u = (p * (u - v_old[:, None]).square().sum(-1)).sum(1).sqrt()
    sd_a = (p * (a - (p @ a)[:, None]) ** 2).sum(1).sqrt()
    assert (step.norm(dim=1) <= sd_a * sd_u / (1.1 + p @ a)).all()


def test_12_step_bound_is_reached() -> None:
    """In one dimension with A linear in the sample, where the two are perfectly correlated."""
    x, t = places()
    x0, p = gaussian_posterior(x, t)
    a = 0.3 * (x0[..., 0] - M)
    v_old = gaussian_velocity(x, t)
    step = minimiser(x, t, x0, p, a, v_old, gamma=1.1, lam=0.0) - v_old
    centre = (p * a).sum(1)
    sd_a = 0.3 * S * t / variance(t).sqrt()
    close(step[:, 0], -sd_a * S / variance(t).sqrt() / (1.1 + centre), atol=1e-10)


@pytest.mark.parametrize("t", [0.9, 0.5, 0.2])
def test_18_old_policy_is_a_control_variate(t: float) -> None:
    """Gradients at one noisy point, by Monte Carlo, when holding on to samples of the old policy and when to v_old.

    Holding on to samples is fitting them with weight A + gamma: the same gradient on average, with more noise.
    gamma = 1 - A keeps its noise wherever the policy goes; at a constant gamma it grows with the distance.
    """
    count = 200_000
    x, time = torch.full((1, 1), 0.6, dtype=torch.float64), torch.tensor([t], dtype=torch.float64)
    v_old = gaussian_velocity(x, time, 0.0, 1.0)
    nodes = real(count, 1)
    x0 = (1 - t) * x / variance(time, 1.0) + t / variance(time, 1.0).sqrt() * nodes
    a = x0[:, 0].clamp(-1, 1)  # the advantage for R = x0 in a large group from N(0, 1)

    def gradient(distance: float, weight: Tensor, gamma: Tensor | float, old: Tensor | None) -> Tensor:
        v = (v_old + distance).expand(count, 1)
        args = (x.expand(count, 1), time.expand(count), x0, weight, gamma, 0.0)
        held = None if old is None else old.expand(count, 1)
        return gradient_at(v, lambda v: advantageflow(v, held, None, *args, space="velocity"))

    for_samples, for_old = gradient(0.0, a + 1.1, 0.0, None), gradient(0.0, a, 1.1, v_old)
    assert for_samples.mean().item() == pytest.approx(for_old.mean().item(), rel=0.03)
    assert (for_samples.var() / for_old.var()).item() > 3
    constant = [gradient(distance, a, 1 - a, v_old).var() for distance in (0.0, 0.5, 2.0)]
    close(torch.stack(constant), constant[0].expand(3), atol=1e-10)
    assert gradient(2.0, a, 1.1, v_old).var() > 1.5 * for_old.var()


@pytest.mark.parametrize("gamma", [1.1, "1-A"])
@pytest.mark.parametrize("value", [-0.8, 0.0, 1.0])
def test_19_equal_advantages_move_nothing(value: float, gamma: float | str) -> None:
    """No difference in reward, no step, if v_old is the mean of what it drew."""
    x, t, x0, rewards = atoms()
    a = torch.full_like(rewards, value)
    p = atoms_posterior(x, t, x0, torch.full_like(rewards, 1 / len(rewards)))
    v_old = velocity_of(x, t, x0, p)
    best = minimiser(x, t, x0, p, a, v_old, gamma=1 - value if gamma == "1-A" else gamma, lam=0.0)
    close(best, v_old, atol=1e-10)


@pytest.mark.parametrize(("gamma", "gain", "spread"), [("1-A", 0.662, 0.934), (1.1, 0.621, 0.783), (5, 0.137, 0.990)])
def test_20_end_to_end(gamma: float | str, gain: float, spread: float) -> None:
    """One exact fit for R = x0 on N(0, 1), then samples by the ODE: the mean, which is the gain in reward.

    At each time the velocity is a least-squares fit to samples, in ten functions of x; its equations are gradients
    of the loss. For a constant gamma the mean must be Cov(A, R) / gamma.
    """
    count, steps = 40_000, 160
    quantiles = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    x0 = quantiles[torch.randperm(count, generator=torch.Generator().manual_seed(0))][:, None]
    a = CentredRMS()(x0[:, 0], torch.zeros(count, dtype=torch.int64))
    g = 1 - a if gamma == "1-A" else float(gamma)

    def basis(x: Tensor, t: Tensor) -> Tensor:
        z = x / variance(t, 1.0).sqrt()[:, None]
        centres = torch.linspace(-2.8, 2.8, 8, dtype=x.dtype)
        return torch.cat([torch.ones_like(z), z, (-(((z - centres) / 0.8) ** 2) / 2).exp()], 1)

    def fit(t: float, seed: int) -> Tensor:
        time = torch.full((count,), t, dtype=torch.float64)
        x_t = interpolate(x0, real(count, 1, seed=seed), time)
        v_old = gaussian_velocity(x_t, time, 0.0, 1.0)
        loss = partial(advantageflow, v_old=v_old, v_ref=None, x_t=x_t, t=time, x0=x0, advantage=a, gamma=g, lam=0.0)
        at_zero = gradient_at(torch.zeros_like(x_t), loss)
        curvature = gradient_at(torch.ones_like(x_t), loss) - at_zero
        phi = basis(x_t, time)
        return torch.linalg.solve(phi.T @ (curvature * phi), -phi.T @ at_zero)

    times = Sampler(steps).times
    fits = [fit(t, seed) for seed, t in enumerate(times[:-1])]

    def fitted(x: Tensor, t: float) -> Tensor:
        return basis(x.double(), torch.full((len(x),), t, dtype=torch.float64)) @ fits[round((1 - t) * steps)]

    noise = quantiles[count // 4000 // 2 :: count // 2000, None]
    end = euler(fitted, noise, times, lambda step: torch.zeros(0))
    assert end.mean().item() == pytest.approx(gain, rel=0.05)
    assert end.std().item() == pytest.approx(spread, rel=0.05)
    if gamma != "1-A":
        assert gain == pytest.approx((a * x0[:, 0]).mean().item() / float(gamma), abs=1e-3)


def test_calibration_corrects_an_old_policy_that_is_wrong() -> None:
    """Six atoms with exact posteriors, v_old off by b: of it the minimiser keeps 1 - E[A | x_t] - mu."""
    rng = torch.Generator().manual_seed(3)
    atoms, a = torch.randn(6, 2, generator=rng, dtype=torch.float64), torch.linspace(-1, 1, 6, dtype=torch.float64)
    t = torch.full((6,), 0.6, dtype=torch.float64)
    x_t = torch.randn(1, 2, generator=rng, dtype=torch.float64).expand(6, 2)
    p = torch.softmax(-((x_t - 0.4 * atoms) ** 2).sum(1) / (2 * 0.36), 0)
    right = (p[:, None] * (x_t - atoms) / 0.6).sum(0)
    off = torch.tensor([0.5, -0.2], dtype=torch.float64)

    def minimiser(mu: float, v_old: Tensor) -> Tensor:
        """Newton's step from 0 on the expected loss, which is quadratic and alike in both coordinates."""

        def slope(v: Tensor) -> Tensor:
            v = v.clone().requires_grad_()
            every = (v.expand(6, 2), v_old.expand(6, 2), None, x_t, t, atoms)
            loss = (p * advantageflow(*every, a + mu, 1 - a - mu, 0.0)).sum()
            return torch.autograd.grad(loss, v)[0]

        nothing, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        return -slope(nothing) / (slope(one) - slope(nothing))

    for mu in (0.0, 0.25):
        kept = (minimiser(mu, right + off) - minimiser(mu, right)) / off
        close(kept, torch.full_like(kept, 1 - (p * a).sum().item() - mu), atol=1e-10)
    close(minimiser(0.25, right), minimiser(0.0, right), atol=1e-10)  # where nothing is wrong nothing changes
