"""One Gaussian step t -> s:   x_s = P x_t + Q v(x_t, t) + sigma z,   z ~ N(0, I).

The law that draws a step is the one that scores it, so a law is three numbers and knows nothing of tensors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt
from typing import Protocol


class Law(Protocol):
    """How a sampler goes from one level to the next."""

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        """(P, Q, sigma) of the step from t to s < t; those singular at t = 1 need the `first` level below it."""
        ...


@dataclass(frozen=True)
class ODE:
    """One Euler step of the probability-flow ODE, dx = v dt."""

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        return 1.0, s - t, 0.0


@dataclass(frozen=True)
class Churn:
    """An Euler step beyond s, then noise back up to s: FDFO's steps, after Karras et al. (2022, arXiv:2206.00364).

    In Karras' levels, t / (1 - t), the overshoot r lies a factor 1 + gamma below s. The signal left is 1 - s and both
    noises together have the level s, so that an exact flow would keep every marginal. The step to s = 0 overshoots by
    nothing and adds nothing. In terms of the clean sample and the noise that v predicts at t, with k = 1 / (1 + gamma):
    x_s = (1 - s) x0 + s (k eps + sqrt(1 - k^2) z).
    """

    gamma: float = 0.0025
    """how far each step goes too far; a share sqrt(1 - (1 + gamma)^-2) of the noise level is fresh"""

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < inf:
            raise ValueError(f"the churn of a step must be a finite number, at least 0, not {self.gamma}")

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        r = s / (1 + self.gamma - self.gamma * s)
        shrink = 1 / (1 + self.gamma * r)
        return shrink, shrink * (r - t), shrink * r * sqrt(self.gamma * (2 + self.gamma))

    def prior(self) -> tuple[float, float]:
        """(factor, sigma): x <- factor x + sigma z churns the noise at t = 1, which stays N(0, I)."""
        return 1 / (1 + self.gamma), sqrt(self.gamma * (2 + self.gamma)) / (1 + self.gamma)
