"""Gaussian mixtures, and mixtures reweighted by an event."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .rewards import Affine, Function, Indicator, closed, store
from .world import Expectation, Posterior, Times, World, not_negative, point, probabilities


@dataclass(frozen=True)
class Mixture(World):
    """Gaussians with full covariances. With a singular covariance there is no density at t = 0."""

    weights: Tensor  # [K], on any scale
    means: Tensor  # [K, D]
    covariances: Tensor  # [K, D, D]

    def __post_init__(self) -> None:
        store(self, weights=probabilities(self.weights), means=self.means, covariances=self.covariances)
        (k, d), c = self.means.shape, self.covariances
        if self.weights.shape != (k,) or c.shape != (k, d, d):
            shapes = f"{[*self.weights.shape]}, {[k, d]} and {[*c.shape]}"
            raise ValueError(f"a mixture needs weights [K], means [K, D] and covariances [K, D, D], not {shapes}")
        if not torch.allclose(c, c.mT) or torch.linalg.eigvalsh(c).min() < -1e-9 * c.abs().max():
            raise ValueError("a covariance must be symmetric, without negative eigenvalues")

    @cached_property
    def _eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues [K, D] and eigenvectors [K, D, D] (columns) of the covariances."""
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
        x, t = point(x, t)
        (values, basis), a, b = self._eigen, 1 - t[:, None, None], t[:, None, None]
        variance = a**2 * values + b**2  # of x_t along the eigenvectors, [B, K, D]
        if (variance <= 0).any():
            raise ValueError("a singular covariance has no density at t = 0: use t > 0")
        y = torch.einsum("kji,bkj->bki", basis, x[:, None] - a * self.means)
        log = self.weights.log() - (y**2 / variance + (2 * math.pi * variance).log()).sum(-1) / 2
        means = self.means + a * torch.einsum("kij,bkj->bki", basis, values / variance * y)
        scores = -torch.einsum("kij,bkj->bki", basis, y / variance)
        return Posterior(t, log.logsumexp(1), log.softmax(1), means, scores, basis, values / variance)

    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        return self.posterior(x, t).expect(f)

    def mean(self, reward: Function) -> float:
        return (self.weights @ closed(reward).moments(self.means, self.covariances)[0]).item()

    def tilt(self, reward: Function, strength: float) -> tuple[World, float]:
        reward = closed(reward)
        if isinstance(reward, Affine):
            q, log_z = self.tilt(reward.reward, strength * reward.scale)
            return q, log_z + strength * reward.offset
        if isinstance(reward, Indicator):
            high = max(0.0, strength)  # factored out, so that nothing overflows
            weight = Affine(reward, math.exp(strength - high) - math.exp(-high), math.exp(-high))
            return self.reweighted(weight), high + math.log(self.mean(weight))
        # Complete the square in y = x - mean: exp(g . y - y' M y / 2) N(y; 0, root root').
        here, slope = reward.moments(self.means, torch.zeros_like(self.covariances))
        precision = self._root.mT @ (strength * reward.matrix) @ self._root
        factor, failed = torch.linalg.cholesky_ex(torch.eye(len(reward.matrix), dtype=torch.float64) + precision)
        if failed.any():
            raise ValueError(
                "exp(strength * reward) grows faster than the tails of this mixture decrease, so no tilt exists; "
                "lower the strength"
            )
        half = torch.linalg.solve_triangular(factor, self._root.mT, upper=False)  # half' half is the new covariance
        shift = torch.einsum("kij,kj->ki", half, strength * slope)
        log = self.weights.log() + strength * here + (shift**2).sum(-1) / 2
        log = log - factor.diagonal(dim1=1, dim2=2).log().sum(-1)
        means = self.means + torch.einsum("kij,ki->kj", half, shift)
        return Mixture(log.softmax(0), means, half.mT @ half), log.logsumexp(0).item()

    def reweighted(self, weight: Affine) -> Reweighted:
        if not isinstance(weight.reward, Indicator):
            raise ValueError("a mixture can only be reweighted by an Affine function of an Indicator")
        return Reweighted(self, weight.reward, weight.offset, weight.offset + weight.scale)


def Gaussian(mean: Tensor, covariance: Tensor) -> Mixture:
    """A Gaussian with mean [D] and covariance [D, D], as a mixture of one component."""
    return Mixture(torch.ones(1), torch.as_tensor(mean)[None], torch.as_tensor(covariance)[None])


@dataclass(frozen=True)
class Reweighted(World):
    """A mixture whose density is multiplied by `on` in the event and by `off` outside it, and normalised.

    For off = 0, velocity and score are NaN at points too far from the event for float64 (38 standard deviations).
    """

    base: Mixture
    event: Indicator
    off: float
    on: float

    def __post_init__(self) -> None:
        for name in ("off", "on"):
            object.__setattr__(self, name, not_negative(torch.tensor(getattr(self, name), dtype=torch.float64)).item())

    @property
    def weight(self) -> Affine:  # unnormalised
        return Affine(self.event, self.on - self.off, self.off)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        high, kept = max(self.off, self.on), self.base.means[:0]
        if self.base.mean(self.weight) < 1e-4 * high:
            raise ValueError("rejection sampling would keep fewer than 1 in 10,000 draws; use a more likely event")
        while len(kept) < n:
            x = self.base.sample(max(n, 1024), generator)
            level = high * torch.rand(len(x), generator=generator, dtype=torch.float64)
            kept = torch.cat([kept, x[level < self.weight(x)]])
        return kept[:n]

    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        if f is not None:
            raise ValueError("a reward at a noisy point of a reweighted mixture has no closed form")
        return self.base.given(x, t, self.weight).reweighted(self.base.mean(self.weight))

    def mean(self, reward: Function) -> float:
        reward = closed(reward)
        if isinstance(reward, Affine):
            return reward.scale * self.mean(reward.reward) + reward.offset
        inside = self.event.product(reward, self.base.means, self.base.covariances)
        total = (self.on - self.off) * (self.base.weights @ inside).item() + self.off * self.base.mean(reward)
        return total / self.base.mean(self.weight)

    def tilt(self, reward: Function, strength: float) -> tuple[World, float]:
        q, log_z = self.base.tilt(reward, strength)
        if not isinstance(q, Mixture):
            raise ValueError("a second reweighting of a mixture has no closed form")
        return q.reweighted(self.weight), log_z + math.log(q.mean(self.weight) / self.base.mean(self.weight))

    def reweighted(self, weight: Affine) -> World:
        raise ValueError("a second reweighting of a mixture has no closed form")
