"""Worlds with closed forms: laws of x0 whose velocity and reward-tilted optimum are known exactly, in float64.

flowward's convention: x_t = (1 - t) x0 + t eps, u = eps - x0, v = E[u | x_t]. All of it follows from three ideas:

1. Given x_t, a Gaussian mixture is again one and atoms stay atoms, so whatever happens at a noisy point is an
   expectation under a posterior. At t = 1 that is the law of x0 itself.
2. A tilt q = w p is a change of measure inside the posterior: v_q = E[w u | x_t] / E[w | x_t], and so for the score.
3. Under a Gaussian, Cov(f, x0) = Cov(x0) E[grad f] (Stein's lemma), so a reward only has to know its `moments`, E[f]
   [...] and E[grad f] [..., D] under N(mean [..., D], covariance [..., D, D]).

Rewards are Linear, Quadratic, Indicator and Affine functions of them; on Discrete atoms, any function. Points x are
[B, D] and times [B], or one number for all. What has no closed form is refused with a ValueError.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..process.policy import Velocity

Function = Callable[[Tensor], Tensor]  # x [..., D] -> [...]
Times = Tensor | float


@dataclass(frozen=True)
class Linear:
    """r = direction . x."""

    direction: Tensor  # [D]

    def __post_init__(self) -> None:
        _store(self, direction=self.direction)

    def __call__(self, x: Tensor) -> Tensor:
        return x.double() @ self.direction

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        return self(mean), self.direction.expand_as(mean)

    @property
    def matrix(self) -> Tensor:
        """[D, D]: no curvature."""
        return self.direction.new_zeros(len(self.direction), len(self.direction))


@dataclass(frozen=True)
class Quadratic:
    """r = -1/2 (x - center)' matrix (x - center), for a symmetric matrix of any sign."""

    matrix: Tensor  # [D, D]
    center: Tensor  # [D]

    def __post_init__(self) -> None:
        _store(self, matrix=self.matrix, center=self.center)
        if not torch.allclose(self.matrix, self.matrix.mT):
            raise ValueError("the matrix of a quadratic reward must be symmetric")

    def __call__(self, x: Tensor) -> Tensor:
        z = x.double() - self.center
        return -((z @ self.matrix) * z).sum(-1) / 2

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        return self(mean) - (self.matrix * covariance).sum((-2, -1)) / 2, (self.center - mean) @ self.matrix


@dataclass(frozen=True)
class Indicator:
    """r = 1 where direction . x > threshold, else 0."""

    direction: Tensor  # [D]
    threshold: float

    def __post_init__(self) -> None:
        _store(self, direction=self.direction)

    def __call__(self, x: Tensor) -> Tensor:
        return (x.double() @ self.direction > self.threshold).double()

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        z, std, density = self._step(mean, covariance)
        return torch.special.ndtr(z), (density / std)[..., None] * self.direction

    def product(self, other: Linear | Quadratic | Indicator, mean: Tensor, covariance: Tensor) -> Tensor:
        """E[f other], [...]."""
        value = self.moments(mean, covariance)[0]
        if isinstance(other, Indicator):
            if not torch.equal(self.direction, other.direction):
                raise ValueError("two indicators along different directions have no closed form together")
            return torch.minimum(value, other.moments(mean, covariance)[0])
        z, std, density = self._step(mean, covariance)
        s = (covariance @ self.direction) / std[..., None]  # for y = x - mean, E[f y] = density s and
        curved = value * (other.matrix * covariance).sum((-2, -1))  # E[f y y'] = value covariance - z density s s'
        curved = curved - z * density * ((s @ other.matrix) * s).sum(-1)
        here, slope = other.moments(mean, torch.zeros_like(covariance))
        return here * value + density * (slope * s).sum(-1) - curved / 2

    def _step(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along the direction: the standardised margin, the standard deviation and the normal density, [...]."""
        std = ((covariance @ self.direction) @ self.direction).clamp_min(1e-300).sqrt()  # 0 at t = 0: a sharp step
        z = (mean @ self.direction - self.threshold) / std
        return z, std, (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Affine:
    """scale * reward + offset: an advantage, or the weight of a tilt."""

    reward: Function  # a Reward, except on atoms
    scale: float
    offset: float

    def __post_init__(self) -> None:
        if isinstance(self.reward, Affine):  # keep one level only
            object.__setattr__(self, "offset", self.scale * self.reward.offset + self.offset)
            object.__setattr__(self, "scale", self.scale * self.reward.scale)
            object.__setattr__(self, "reward", self.reward.reward)

    def __call__(self, x: Tensor) -> Tensor:
        return self.scale * self.reward(x).double() + self.offset

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = _closed(self.reward).moments(mean, covariance)
        return self.scale * value + self.offset, self.scale * gradient


Reward = Linear | Quadratic | Indicator | Affine


@dataclass(frozen=True)
class Expectation:
    """Of f(x0) alone, and times what a model may predict, given x_t."""

    t: Tensor  # [B]
    log_prob: Tensor  # [B] log p_t(x_t)
    value: Tensor  # [B] E[f | x_t]
    sample: Tensor  # [B, D] E[f x0 | x_t]
    score: Tensor  # [B, D] E[f s | x_t], s = grad_x log p(x_t | x0) = -eps / t; for f = 1 the score of p_t

    @property
    def velocity(self) -> Tensor:
        """E[f u | x_t], [B, D]. For f = 1 it is -(x + t s) / (1 - t), in a form that holds up to t = 1."""
        return -self.t[:, None] * self.score - self.sample

    def reweighted(self, total: float = 1.0) -> Expectation:
        """Of 1, under the law f p / total, where total = E[f]."""
        w, one = self.value[:, None], torch.ones_like(self.value)
        return Expectation(self.t, self.log_prob + (self.value / total).log(), one, self.sample / w, self.score / w)


@dataclass(frozen=True)
class Posterior:
    """x0 given x_t: a mixture of Gaussians at each of B points, or of K atoms, the same at all of them."""

    t: Tensor  # [B]
    log_prob: Tensor  # [B] log p_t(x_t)
    weights: Tensor  # [B, K]
    means: Tensor  # [B, K, D], or atoms [1, K, D]
    scores: Tensor  # [B, K, D] of x_t in each component
    basis: Tensor  # [K, D, D] eigenvectors of the components' covariances, as columns; atoms [1, D, D]
    gain: Tensor | None  # [B, K, D] eigenvalues of Cov(x0 | x_t) / t^2, finite at t = 0; None for atoms

    @property
    def covariances(self) -> Tensor:  # [B, K, D, D]; atoms [1, D, D]
        if self.gain is None:
            return torch.zeros_like(self.basis)
        return (self.basis * (self.t[:, None, None] ** 2 * self.gain)[..., None, :]) @ self.basis.mT

    def expect(self, f: Function | None = None) -> Expectation:
        """Of f, or of 1."""
        value, pull, t = self.weights[..., None], torch.zeros(()), self.t[:, None, None]
        if f is not None and self.gain is None:
            value = value * f(self.means[0]).double()[:, None]
        elif f is not None:
            mean, gradient = _closed(f).moments(self.means, self.covariances)
            pull = value * torch.einsum("bkl,klj,bkj,kij->bki", gradient, self.basis, self.gain, self.basis)
            value = value * mean[..., None]  # Stein: t^2 pull is Cov(f, x0) of a component
        sample, score = value * self.means + t**2 * pull, value * self.scores + (1 - t) * pull
        return Expectation(self.t, self.log_prob, value.sum((1, 2)), sample.sum(1), score.sum(1))

    @property
    def mean(self) -> Tensor:  # [B, D]
        return self.expect().sample

    @property
    def covariance(self) -> Tensor:  # [B, D, D]
        z = self.means - self.mean[:, None]
        return (self.weights[..., None, None] * self.covariances).sum(1) + (self.weights[..., None] * z).mT @ z


class World(ABC):
    """A law of x0."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """[n, D]."""

    @abstractmethod
    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        """The expectation of f, or of 1, given x_t = x.

        With f = 1 + (R - E[R]) / gamma, its `reweighted().velocity` is what AdvantageFlow's loss tends to (constant
        gamma, no reference), v + Cov(R, u | x_t) / (gamma + E[R - E R | x_t]), whether or not f is positive.
        """

    @abstractmethod
    def mean(self, reward: Function) -> float:
        """E[R(x0)]."""

    @abstractmethod
    def tilt(self, reward: Function, strength: float) -> tuple[World, float]:
        """q proportional to p exp(strength R), and log E_p[exp(strength R)]."""

    @abstractmethod
    def reweighted(self, weight: Affine) -> World:
        """q = w p / E_p[w]."""

    def log_prob(self, x: Tensor, t: Times = 0.0) -> Tensor:
        """Of x_t, [B]."""
        return self.given(x, t).log_prob

    def velocity(self, x: Tensor, t: Times) -> Tensor:
        """E[u | x_t = x], [B, D]."""
        return self.given(x, t).velocity

    def score(self, x: Tensor, t: Times) -> Tensor:
        """grad_x log p_t(x), [B, D]."""
        return self.given(x, t).score


@dataclass(frozen=True)
class Discrete(World):
    """Finitely many x0. Every function of x0 is a reward here, since a tilt only changes the weights."""

    atoms: Tensor  # [K, D]
    weights: Tensor  # [K], on any scale

    def __post_init__(self) -> None:
        _store(self, atoms=self.atoms, weights=_probabilities(self.weights))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.atoms[self.weights.multinomial(n, replacement=True, generator=generator)]

    def posterior(self, x: Tensor, t: Times) -> Posterior:
        x, t = _point(x, t)
        if (t <= 0).any():
            raise ValueError("atoms have no density at t = 0: ask for t > 0")
        z = (x[:, None] - (1 - t[:, None, None]) * self.atoms) / t[:, None, None]
        log = self.weights.log() - (z**2).sum(-1) / 2 - x.shape[1] * (t[:, None] * math.sqrt(2 * math.pi)).log()
        basis, scores = torch.eye(x.shape[1], dtype=torch.float64)[None], -z / t[:, None, None]
        return Posterior(t, log.logsumexp(1), log.softmax(1), self.atoms[None], scores, basis, None)

    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        return self.posterior(x, t).expect(f)

    def mean(self, reward: Function) -> float:
        return (self.weights @ reward(self.atoms).double()).item()

    def tilt(self, reward: Function, strength: float) -> tuple[Discrete, float]:
        log = self.weights.log() + strength * reward(self.atoms).double()
        return Discrete(self.atoms, log.softmax(0)), log.logsumexp(0).item()

    def reweighted(self, weight: Affine) -> Discrete:
        return Discrete(self.atoms, self.weights * _not_negative(weight(self.atoms)))


@dataclass(frozen=True)
class Mixture(World):
    """Gaussians with full covariances. Singular ones have no density, and nothing to ask for, at t = 0."""

    weights: Tensor  # [K], on any scale
    means: Tensor  # [K, D]
    covariances: Tensor  # [K, D, D]

    def __post_init__(self) -> None:
        _store(self, weights=_probabilities(self.weights), means=self.means, covariances=self.covariances)
        (k, d), c = self.means.shape, self.covariances
        if self.weights.shape != (k,) or c.shape != (k, d, d):
            shapes = f"{[*self.weights.shape]}, {[k, d]} and {[*c.shape]}"
            raise ValueError(f"a mixture needs weights [K], means [K, D] and covariances [K, D, D], not {shapes}")
        if not torch.allclose(c, c.mT) or torch.linalg.eigvalsh(c).min() < -1e-9 * c.abs().max():
            raise ValueError("a covariance must be symmetric, without negative eigenvalues")

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Of the covariances: values [K, D] and vectors [K, D, D], as columns."""
        values, vectors = torch.linalg.eigh(self.covariances)
        return values.clamp_min(0), vectors

    @cached_property
    def _root(self) -> Tensor:
        """[K, D, D]: root @ root' is the covariance."""
        values, vectors = self._eigen
        return vectors * values.sqrt()[:, None, :]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        k = self.weights.multinomial(n, replacement=True, generator=generator)
        z = torch.randn(n, self.means.shape[1], generator=generator, dtype=torch.float64)
        return self.means[k] + torch.einsum("nij,nj->ni", self._root[k], z)

    def posterior(self, x: Tensor, t: Times) -> Posterior:
        x, t = _point(x, t)
        (values, basis), a, b = self._eigen, 1 - t[:, None, None], t[:, None, None]
        variance = a**2 * values + b**2  # of x_t along the eigenvectors, [B, K, D]
        if (variance <= 0).any():
            raise ValueError("a singular covariance has no density at t = 0: ask for t > 0")
        y = torch.einsum("kji,bkj->bki", basis, x[:, None] - a * self.means)
        log = self.weights.log() - (y**2 / variance + (2 * math.pi * variance).log()).sum(-1) / 2
        means = self.means + a * torch.einsum("kij,bkj->bki", basis, values / variance * y)
        scores = -torch.einsum("kij,bkj->bki", basis, y / variance)
        return Posterior(t, log.logsumexp(1), log.softmax(1), means, scores, basis, values / variance)

    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        return self.posterior(x, t).expect(f)

    def mean(self, reward: Function) -> float:
        return (self.weights @ _closed(reward).moments(self.means, self.covariances)[0]).item()

    def tilt(self, reward: Function, strength: float) -> tuple[World, float]:
        reward = _closed(reward)
        if isinstance(reward, Affine):
            q, log_z = self.tilt(reward.reward, strength * reward.scale)
            return q, log_z + strength * reward.offset
        if isinstance(reward, Indicator):
            high = max(0.0, strength)  # taken out, so that nothing overflows
            weight = Affine(reward, math.exp(strength - high) - math.exp(-high), math.exp(-high))
            return self.reweighted(weight), high + math.log(self.mean(weight))
        # Complete the square in y = x - mean: exp(g . y - y' M y / 2) N(y; 0, root root').
        here, slope = reward.moments(self.means, torch.zeros_like(self.covariances))
        precision = self._root.mT @ (strength * reward.matrix) @ self._root
        factor, failed = torch.linalg.cholesky_ex(torch.eye(len(reward.matrix), dtype=torch.float64) + precision)
        if failed.any():
            raise ValueError("exp(strength * reward) grows faster than the tails of this mixture fall: no tilted law")
        half = torch.linalg.solve_triangular(factor, self._root.mT, upper=False)  # half' half is the new covariance
        shift = torch.einsum("kij,kj->ki", half, strength * slope)
        log = self.weights.log() + strength * here + (shift**2).sum(-1) / 2
        log = log - factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        means = self.means + torch.einsum("kij,ki->kj", half, shift)
        return Mixture(log.softmax(0), means, half.mT @ half), log.logsumexp(0).item()

    def reweighted(self, weight: Affine) -> Reweighted:
        if not isinstance(weight.reward, Indicator):
            raise ValueError("on a mixture only the weights of an Indicator stay positive and have a closed form")
        return Reweighted(self, weight.reward, weight.offset, weight.offset + weight.scale)


def Gaussian(mean: Tensor, covariance: Tensor) -> Mixture:
    """mean [D], covariance [D, D]: a mixture of one."""
    return Mixture(torch.ones(1), torch.as_tensor(mean)[None], torch.as_tensor(covariance)[None])


@dataclass(frozen=True)
class Reweighted(World):
    """A mixture whose density is multiplied by `on` in the event, by `off` outside it, and normalised.

    For off = 0, velocity and score are nan where the event is out of the reach of float64 (38 standard deviations).
    """

    base: Mixture
    event: Indicator
    off: float
    on: float

    def __post_init__(self) -> None:
        for name in ("off", "on"):
            object.__setattr__(self, name, _not_negative(torch.tensor(getattr(self, name), dtype=torch.float64)).item())

    @property
    def weight(self) -> Affine:  # unnormalised
        return Affine(self.event, self.on - self.off, self.off)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        high, kept = max(self.off, self.on), self.base.means[:0]
        if self.base.mean(self.weight) < 1e-4 * high:
            raise ValueError("drawing by rejection would keep fewer than 1 in 10,000 draws")
        while len(kept) < n:
            x = self.base.sample(max(n, 1024), generator)
            level = high * torch.rand(len(x), generator=generator, dtype=torch.float64)
            kept = torch.cat([kept, x[level < self.weight(x)]])
        return kept[:n]

    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        if f is not None:
            raise ValueError("no closed form for a reward at a noisy point of a reweighted mixture")
        return self.base.given(x, t, self.weight).reweighted(self.base.mean(self.weight))

    def mean(self, reward: Function) -> float:
        reward = _closed(reward)
        if isinstance(reward, Affine):
            return reward.scale * self.mean(reward.reward) + reward.offset
        inside = self.event.product(reward, self.base.means, self.base.covariances)
        total = (self.on - self.off) * (self.base.weights @ inside).item() + self.off * self.base.mean(reward)
        return total / self.base.mean(self.weight)

    def tilt(self, reward: Function, strength: float) -> tuple[World, float]:
        q, log_z = self.base.tilt(reward, strength)
        if not isinstance(q, Mixture):
            raise ValueError("no closed form for a second reweighting of a mixture")
        return q.reweighted(self.weight), log_z + math.log(q.mean(self.weight) / self.base.mean(self.weight))

    def reweighted(self, weight: Affine) -> World:
        raise ValueError("no closed form for a second reweighting of a mixture")


def as_velocity(world: World) -> Velocity:
    """The world as a model, x [B, ...], t [B] and a condition that is ignored -> v [B, ...] in the dtype of x."""
    return lambda x, t, condition: world.velocity(x.flatten(1), t).view_as(x).to(x.dtype)


def expected_reward(world: World, reward: Function) -> float:
    """E[R(x0)]."""
    return world.mean(reward)


def kl_tilt(world: World, reward: Function, temperature: float) -> World:
    """q proportional to p exp(R / temperature), the maximiser of E_q[R] - temperature KL(q || p).

    A mixture stays one under a linear or quadratic reward, and is Reweighted under an indicator.
    """
    return world.tilt(reward, 1 / _positive("temperature", temperature))[0]


def kl_of_tilt(world: World, reward: Function, temperature: float) -> float:
    """KL(q || p) of that q, for any p that it can be had for: E_q[R] / temperature - log E_p[exp(R / temperature)]."""
    q, log_z = world.tilt(reward, 1 / _positive("temperature", temperature))
    return q.mean(reward) / temperature - log_z


def chi_square_tilt(world: World, reward: Function, gamma: float) -> World:
    """q = (1 + (R - E_p[R]) / gamma) p, the maximiser of E_q[R] - gamma/2 chi^2(q || p).

    Its velocity is v_p + Cov(R, u | x_t) / (gamma + E_p[R - E_p R | x_t]), the minimiser of AdvantageFlow's loss for
    constant gamma and no reference. For an unbounded reward there is no such q, but still that minimiser: see
    `World.given`.

    Raises:
        ValueError: a weight is negative somewhere (gamma is too small, or the reward is unbounded).
    """
    return world.reweighted(Affine(reward, 1 / _positive("gamma", gamma), 1 - world.mean(reward) / gamma))


def weight_given_noisy(q: World, p: World, x: Tensor, t: Times) -> Tensor:
    """W_t(x) = E_p[q/p | x_t = x], [B], which is q_t(x) / p_t(x)."""
    return (q.log_prob(x, t) - p.log_prob(x, t)).exp()


def covariance_with_velocity(world: World, reward: Function, x: Tensor, t: Times) -> Tensor:
    """Cov(R, u | x_t = x), [B, D]. For R = q/p, it is W_t (v_q - v_p), W_t from `weight_given_noisy`."""
    of_reward, of_one = world.given(x, t, reward), world.given(x, t)
    return of_reward.velocity - of_reward.value[:, None] * of_one.velocity


def kl(q: World, p: World) -> float:
    """KL(q || p) of two laws on the same atoms, or of two Gaussians; of a tilt, see `kl_of_tilt`."""
    if isinstance(q, Discrete) and isinstance(p, Discrete) and torch.equal(q.atoms, p.atoms):
        return (q.weights.xlogy(q.weights) - q.weights.xlogy(p.weights)).sum().item()
    d, cq, cp = _gaussians(q, p)
    mahalanobis, trace = d @ torch.linalg.solve(cp, d), torch.linalg.solve(cp, cq).trace()
    return ((trace - len(d) + mahalanobis + cp.logdet() - cq.logdet()) / 2).item()


def chi_square(q: World, p: World) -> float:
    """chi^2(q || p) = E_p[(q/p)^2] - 1, for the pairs of `kl` and for q = Reweighted(p, ...).

    Raises:
        ValueError: no closed form, or infinite, since the tails of q are too heavy for p.
    """
    if isinstance(q, Discrete) and isinstance(p, Discrete) and torch.equal(q.atoms, p.atoms):
        return (q.weights**2 / p.weights)[q.weights > 0].sum().item() - 1
    if isinstance(q, Reweighted) and q.base is p:
        event = p.mean(q.event)
        return event * (1 - event) * (q.on - q.off) ** 2 / p.mean(q.weight) ** 2
    d, cq, cp = _gaussians(q, p)
    pull, precision = torch.linalg.solve(cp, d), 2 * torch.linalg.inv(cq) - torch.linalg.inv(cp)
    if torch.linalg.eigvalsh(precision).min() <= 0:
        raise ValueError("chi^2(q || p) is infinite: along some direction q has twice the variance of p, or more")
    log = pull @ torch.linalg.solve(precision, pull) + d @ pull + cp.logdet() - 2 * cq.logdet() - precision.logdet()
    return (log / 2).expm1().item()


def _store(record: Any, **tensors: Tensor) -> None:
    """Keep fields of a frozen record in float64."""
    for name, value in tensors.items():
        object.__setattr__(record, name, torch.as_tensor(value, dtype=torch.float64))


def _probabilities(weights: Tensor) -> Tensor:
    weights = _not_negative(torch.as_tensor(weights, dtype=torch.float64))
    if not 0 < weights.sum() < math.inf:
        raise ValueError(f"weights need a positive, finite sum, not {weights.sum().item()}")
    return weights / weights.sum()


def _not_negative(weights: Tensor) -> Tensor:
    if weights.min() < -1e-12:  # room for a 0 with a rounding error
        raise ValueError(f"a law needs weights of at least 0, and one is {weights.min().item():.4g}")
    return weights.clamp_min(0)


def _positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be positive, not {value}")
    return value


def _closed(f: Function) -> Reward:
    if not isinstance(f, Reward):
        raise ValueError("a mixture takes Linear, Quadratic and Indicator rewards, or Affine ones; Discrete takes any")
    return f


def _point(x: Tensor, t: Times) -> tuple[Tensor, Tensor]:
    """x [B, D] and t [B] in float64."""
    return x.double(), torch.as_tensor(t, dtype=torch.float64).expand(len(x))


def _gaussians(q: World, p: World) -> tuple[Tensor, Tensor, Tensor]:
    """The difference of the means [D] and both covariances [D, D]."""
    if isinstance(q, Mixture) and isinstance(p, Mixture) and len(q.weights) == len(p.weights) == 1:
        return q.means[0] - p.means[0], q.covariances[0], p.covariances[0]
    raise ValueError("the divergence of these two worlds has no closed form; for an exponential tilt see kl_of_tilt")
