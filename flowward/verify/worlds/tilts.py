"""Reward-tilted optima of worlds, and divergences between worlds."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ...process.policy import Velocity
from .discrete import Discrete
from .mixture import Mixture, Reweighted
from .rewards import Affine, Function
from .world import Times, World


def as_velocity(world: World) -> Velocity:
    """The world as a model: x [B, ...], t [B] and a condition, which is ignored -> v [B, ...] in the dtype of x."""
    return lambda x, t, condition: world.velocity(x.flatten(1), t).view_as(x).to(x.dtype)


def expected_reward(world: World, reward: Function) -> float:
    """E[R(x0)]."""
    return world.mean(reward)


def kl_tilt(world: World, reward: Function, temperature: float) -> World:
    """The world q proportional to p exp(R / temperature), the maximiser of E_q[R] - temperature KL(q || p).

    With a linear or quadratic reward, a mixture stays a mixture; with an indicator it becomes Reweighted.
    """
    return world.tilt(reward, 1 / _positive("temperature", temperature))[0]


def kl_of_tilt(world: World, reward: Function, temperature: float) -> float:
    """KL(q || p) for q = kl_tilt(p, ...): E_q[R] / temperature - log E_p[exp(R / temperature)]."""
    q, log_z = world.tilt(reward, 1 / _positive("temperature", temperature))
    return q.mean(reward) / temperature - log_z


def chi_square_tilt(world: World, reward: Function, gamma: float) -> World:
    """The world q = (1 + (R - E_p[R]) / gamma) p, the maximiser of E_q[R] - gamma/2 chi^2(q || p).

    Its velocity is v_p + Cov(R, u | x_t) / (gamma + E_p[R - E_p R | x_t]), the minimiser of AdvantageFlow's loss for
    constant gamma and no reference. If the reward is unbounded, q does not exist, but the minimiser does: see
    `World.given`.

    Raises:
        ValueError: a weight is negative somewhere (gamma is too small, or the reward is unbounded).
    """
    return world.reweighted(Affine(reward, 1 / _positive("gamma", gamma), 1 - world.mean(reward) / gamma))


def weight_given_noisy(q: World, p: World, x: Tensor, t: Times) -> Tensor:
    """W_t(x) = E_p[q/p | x_t = x] = q_t(x) / p_t(x), [B]."""
    return (q.log_prob(x, t) - p.log_prob(x, t)).exp()


def covariance_with_velocity(world: World, reward: Function, x: Tensor, t: Times) -> Tensor:
    """Cov(R, u | x_t = x), [B, D]. For R = q/p it is W_t (v_q - v_p), with W_t from `weight_given_noisy`."""
    of_reward, of_one = world.given(x, t, reward), world.given(x, t)
    return of_reward.velocity - of_reward.value[:, None] * of_one.velocity


def kl(q: World, p: World) -> float:
    """KL(q || p) of two distributions on the same atoms, or of two Gaussians; for a tilt, see `kl_of_tilt`."""
    if isinstance(q, Discrete) and isinstance(p, Discrete) and torch.equal(q.atoms, p.atoms):
        return (q.weights.xlogy(q.weights) - q.weights.xlogy(p.weights)).sum().item()
    d, cq, cp = _gaussians(q, p)
    mahalanobis, trace = d @ torch.linalg.solve(cp, d), torch.linalg.solve(cp, cq).trace()
    return ((trace - len(d) + mahalanobis + cp.logdet() - cq.logdet()) / 2).item()


def chi_square(q: World, p: World) -> float:
    """chi^2(q || p) = E_p[(q/p)^2] - 1, for the pairs of `kl` and for q = Reweighted(p, ...).

    Raises:
        ValueError: no closed form, or infinite because the tails of q are too heavy.
    """
    if isinstance(q, Discrete) and isinstance(p, Discrete) and torch.equal(q.atoms, p.atoms):
        return (q.weights**2 / p.weights)[q.weights > 0].sum().item() - 1
    if isinstance(q, Reweighted) and q.base is p:
        event = p.mean(q.event)
        return event * (1 - event) * (q.on - q.off) ** 2 / p.mean(q.weight) ** 2
    d, cq, cp = _gaussians(q, p)
    pull, precision = torch.linalg.solve(cp, d), 2 * torch.linalg.inv(cq) - torch.linalg.inv(cp)
    if torch.linalg.eigvalsh(precision).min() <= 0:
        raise ValueError("chi^2(q || p) is infinite: in some direction q has at least twice the variance of p")
    log = pull @ torch.linalg.solve(precision, pull) + d @ pull + cp.logdet() - 2 * cq.logdet() - precision.logdet()
    return (log / 2).expm1().item()


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be a positive number, not {value}")
    return value


def _gaussians(q: World, p: World) -> tuple[Tensor, Tensor, Tensor]:
    """The difference of the means [D] and both covariances [D, D]."""
    if isinstance(q, Mixture) and isinstance(p, Mixture) and len(q.weights) == len(p.weights) == 1:
        return q.means[0] - p.means[0], q.covariances[0], p.covariances[0]
    raise ValueError("the divergence of these two worlds has no closed form; for an exponential tilt use kl_of_tilt")
