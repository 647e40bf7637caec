"""Gaussian data in closed form: the velocity and the exact flow of N(mean, scale^2)."""

from __future__ import annotations

from math import sqrt

from torch import Tensor

from flowward.process.solvers import Field

MEAN = 0.7  # of the data


def variance(t: float, scale: float) -> float:
    """D(t), of x_t."""
    return (1 - t) ** 2 * scale**2 + t**2


def gaussian(scale: float, mean: float = MEAN) -> Field:
    """E[eps - x0 | x_t] for x0 ~ N(mean, scale^2) per coordinate."""
    return lambda x, t: (t - (1 - t) * scale**2) / variance(t, scale) * (x - (1 - t) * mean) - mean


def flow(x: Tensor, t: float, s: float, scale: float) -> Tensor:
    """The same data's exact flow from t to s: (x - (1 - t) MEAN) / sqrt(D(t)) is conserved."""
    return (1 - s) * MEAN + sqrt(variance(s, scale) / variance(t, scale)) * (x - (1 - t) * MEAN)
