"""Noise schedules to test with, and the exact mean and spread of their steps on Gaussian data."""

from __future__ import annotations

from itertools import pairwise
from math import sqrt

from gaussian_flow import MEAN, variance

from flowward.process.flow import grid
from flowward.process.laws import CPS, DDIM, ODE, PRECISE, Churn, DancePRECISE, DanceSDE, FlowSDE, Law, LinearSDE

SCALE = 0.5  # of the data
LEVELS = [1.0, 0.96, 0.7, 0.69, 0.3, 0.0089, 0.0]  # every step between neighbours is tried
NOISY: list[Law] = [FlowSDE(), FlowSDE(1.2), DanceSDE(), DanceSDE(1.0), LinearSDE(), LinearSDE(0.4)]
NOISY += [DDIM(), DDIM(1.0), CPS(), CPS(0.5), CPS(1.0)]
NOISY += [PRECISE(), PRECISE(1.5), PRECISE(held=True), DancePRECISE()]
SILENT: list[Law] = [ODE(), Churn(0.0), FlowSDE(0.0), DanceSDE(0.0), LinearSDE(0.0), DDIM(0.0), CPS(0.0)]
SILENT += [PRECISE(0.0), PRECISE(0.0, held=True), DancePRECISE(0.0)]
CHURNED: list[Law] = [Churn(), Churn(0.1), Churn(1.0)]
PRESERVING = [law for law in NOISY if isinstance(law, DDIM | CPS | PRECISE | DancePRECISE)]


def equal_levels(steps: int) -> list[float]:
    return grid(steps, 1.0, "linear").tolist()


def velocity(x: float, t: float, scale: float = SCALE) -> float:
    """E[eps - x0 | x_t] for x0 ~ N(MEAN, scale^2)."""
    return (t - (1 - t) * scale**2) / variance(t, scale) * (x - (1 - t) * MEAN) - MEAN


def moved(law: Law, t: float, s: float, mean: float, var: float, scale: float, first: float) -> tuple[float, float]:
    """Mean and variance of x_s, from those of x_t: a step is affine in x_t, because the velocity is."""
    p, q, sigma = law.coefficients(t, s, first)
    slope = p + q * (velocity(1.0, t, scale) - velocity(0.0, t, scale))
    return p * mean + q * velocity(mean, t, scale), slope**2 * var + sigma**2


def sampled(law: Law, steps: int, scale: float = SCALE) -> tuple[float, float]:
    """Mean and std at t = 0, from N(0, 1) at t = 1, without sampling error."""
    levels, mean, var = equal_levels(steps), 0.0, 1.0
    for t, s in pairwise(levels):
        mean, var = moved(law, t, s, mean, var, scale, levels[1])
    return mean, sqrt(var)
