"""The interface of a world, and expectations under its posterior at a noisy point."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from .rewards import Affine, Function, closed

Times = Tensor | float


@dataclass(frozen=True)
class Expectation:
    """Posterior expectations given x_t: of f(x0), and of f(x0) times x0, the score and the velocity."""

    t: Tensor  # [B]
    log_prob: Tensor  # [B] log p_t(x_t)
    value: Tensor  # [B] E[f | x_t]
    sample: Tensor  # [B, D] E[f x0 | x_t]
    score: Tensor  # [B, D] E[f s | x_t], s = grad_x log p(x_t | x0) = -eps / t; for f = 1 the score of p_t

    @property
    def velocity(self) -> Tensor:
        """E[f u | x_t], [B, D]. For f = 1 it is -(x + t s) / (1 - t), in a form that is valid up to t = 1."""
        return -self.t[:, None] * self.score - self.sample

    def reweighted(self, total: float = 1.0) -> Expectation:
        """The expectation of 1 under the distribution f p / total, with total = E[f]."""
        w, one = self.value[:, None], torch.ones_like(self.value)
        return Expectation(self.t, self.log_prob + (self.value / total).log(), one, self.sample / w, self.score / w)


@dataclass(frozen=True)
class Posterior:
    """x0 given x_t: a Gaussian mixture at each of B points, or weights of K atoms shared by all points."""

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
        """The expectation of f, or of 1."""
        value, pull, t = self.weights[..., None], torch.zeros(()), self.t[:, None, None]
        if f is not None and self.gain is None:
            value = value * f(self.means[0]).double()[:, None]
        elif f is not None:
            mean, gradient = closed(f).moments(self.means, self.covariances)
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
    """A distribution of x0."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw samples [n, D]."""

    @abstractmethod
    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        """The expectation of f, or of 1, given x_t = x.

        With f = 1 + (R - E[R]) / gamma, its `reweighted().velocity` is the minimiser of AdvantageFlow's loss (constant
        gamma, no reference), v + Cov(R, u | x_t) / (gamma + E[R - E R | x_t]), for f of any sign.
        """

    @abstractmethod
    def mean(self, reward: Function) -> float:
        """E[R(x0)]."""

    @abstractmethod
    def tilt(self, reward: Function, strength: float) -> tuple[World, float]:
        """The world q proportional to p exp(strength R), and log E_p[exp(strength R)]."""

    @abstractmethod
    def reweighted(self, weight: Affine) -> World:
        """The world q = w p / E_p[w]."""

    def log_prob(self, x: Tensor, t: Times = 0.0) -> Tensor:
        """log p_t(x), [B]."""
        return self.given(x, t).log_prob

    def velocity(self, x: Tensor, t: Times) -> Tensor:
        """E[u | x_t = x], [B, D]."""
        return self.given(x, t).velocity

    def score(self, x: Tensor, t: Times) -> Tensor:
        """grad_x log p_t(x), [B, D]."""
        return self.given(x, t).score


def probabilities(weights: Tensor) -> Tensor:
    """Weights [K] normalised to sum 1, in float64."""
    weights = not_negative(torch.as_tensor(weights, dtype=torch.float64))
    if not 0 < weights.sum() < math.inf:
        raise ValueError(f"the weights of a world need a positive, finite sum, not {weights.sum().item()}")
    return weights / weights.sum()


def not_negative(weights: Tensor) -> Tensor:
    """Clamp rounding errors below 0; raises ValueError if a weight is really negative."""
    if weights.min() < -1e-12:
        raise ValueError(f"the weights of a world must be at least 0, but one is {weights.min().item():.4g}")
    return weights.clamp_min(0)


def point(x: Tensor, t: Times) -> tuple[Tensor, Tensor]:
    """x [B, D] and t [B] in float64."""
    return x.double(), torch.as_tensor(t, dtype=torch.float64).expand(len(x))
