"""Rewards with closed-form moments: linear, quadratic, indicator, and affine functions of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Function = Callable[[Tensor], Tensor]  # x [..., D] -> [...]


@dataclass(frozen=True)
class Linear:
    """The reward r = direction . x."""

    direction: Tensor  # [D]

    def __post_init__(self) -> None:
        store(self, direction=self.direction)

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
    """The reward r = -1/2 (x - center)' matrix (x - center), for a symmetric matrix of any sign."""

    matrix: Tensor  # [D, D]
    center: Tensor  # [D]

    def __post_init__(self) -> None:
        store(self, matrix=self.matrix, center=self.center)
        if not torch.allclose(self.matrix, self.matrix.mT):
            raise ValueError("the matrix of a quadratic reward must be symmetric")

    def __call__(self, x: Tensor) -> Tensor:
        z = x.double() - self.center
        return -((z @ self.matrix) * z).sum(-1) / 2

    def moments(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
        return self(mean) - (self.matrix * covariance).sum((-2, -1)) / 2, (self.center - mean) @ self.matrix


@dataclass(frozen=True)
class Indicator:
    """The reward r = 1 if direction . x > threshold, else 0."""

    direction: Tensor  # [D]
    threshold: float

    def __post_init__(self) -> None:
        store(self, direction=self.direction)

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
                raise ValueError("the product of two indicators along different directions has no closed form")
            return torch.minimum(value, other.moments(mean, covariance)[0])
        z, std, density = self._step(mean, covariance)
        s = (covariance @ self.direction) / std[..., None]  # for y = x - mean, E[f y] = density s and
        curved = value * (other.matrix * covariance).sum((-2, -1))  # E[f y y'] = value covariance - z density s s'
        curved = curved - z * density * ((s @ other.matrix) * s).sum(-1)
        here, slope = other.moments(mean, torch.zeros_like(covariance))
        return here * value + density * (slope * s).sum(-1) - curved / 2

    def _step(self, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along the direction: the standardised margin, the standard deviation and the normal density, [...]."""
        std = ((covariance @ self.direction) @ self.direction).clamp_min(1e-300).sqrt()  # std 0 at t = 0: a hard step
        z = (mean @ self.direction - self.threshold) / std
        return z, std, (-(z**2) / 2).exp() / math.sqrt(2 * math.pi)


@dataclass(frozen=True)
class Affine:
    """scale * reward + offset, for advantages and weights of tilts."""

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
        value, gradient = closed(self.reward).moments(mean, covariance)
        return self.scale * value + self.offset, self.scale * gradient


Reward = Linear | Quadratic | Indicator | Affine


def store(record: Any, **tensors: Tensor) -> None:
    """Set fields of a frozen record, in float64."""
    for name, value in tensors.items():
        object.__setattr__(record, name, torch.as_tensor(value, dtype=torch.float64))


def closed(f: Function) -> Reward:
    """The same reward; raises ValueError if it has no closed-form moments."""
    if not isinstance(f, Reward):
        raise ValueError(
            "a mixture needs a Linear, Quadratic, Indicator or Affine reward; a Discrete world accepts any function"
        )
    return f
