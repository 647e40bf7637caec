"""Solvers: from noise to a sample along a list of times, with one velocity evaluation per step.

With alpha = 1 - t, sigma = t and lambda = log((1 - t) / t), second-order solvers extrapolate the data prediction
m = x - t v in lambda. lambda is infinite at t = 0 and t = 1, so the steps there have their own formulas.
The state is float32, or float64 if x is. Coefficients are float64. Arguments are not modified.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, expm1, log, sqrt
from typing import Protocol

from torch import Tensor

from .flow import wide

MOST_TAU = 100  # 1 reverses the usual diffusion

Field = Callable[..., Tensor]
"""x [B, ...] at time t -> v [B, ...]; of a model with two times also (x, t, s) -> the average velocity from t to s"""
Noise = Callable[[int], Tensor]
"""index of a step -> standard normal [B, ...]; repeated calls return the same noise"""


class Solver(Protocol):
    """Integrates a velocity field along a list of times."""

    def __call__(self, field: Field, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
        """x [B, ...] at times[0] = 1 -> [B, ...] at times[-1] = 0; `times` decreases."""
        ...


def prediction(field: Field, x: Tensor, t: float) -> Tensor:
    """m = x - t v, in the dtype of x."""
    return x - t * field(x, t).to(x.dtype)


def log_snr(t: float) -> float:
    """lambda, for t strictly between 0 and 1."""
    return log((1 - t) / t)


def euler(field: Field, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
    """Solve the probability-flow ODE, dx = v dt, to first order."""
    x = wide(x)
    for t, s in pairwise(times):
        x = x + (s - t) * field(x, t).to(x.dtype)
    return x


def jump(field: Field, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
    """Follow a flow map, x_s = x_t - (t - s) U(x_t, s, t), where U is the average velocity of a model with two times.

    Each step is exact if U is, however long it is (MeanFlow; Geng et al., 2025, arXiv:2505.13447, Eq. 12).
    """
    x = wide(x)
    for t, s in pairwise(times):
        x = x + (s - t) * field(x, t, s).to(x.dtype)
    return x


def dpm2(field: Field, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
    """Solve the same ODE by multistep DPM-Solver++(2M) (Lu et al., 2022, arXiv:2211.01095), DiffusionNFT's sampler.

    The first, second and last step are Euler steps. In the second, one of the two data predictions lies at
    lambda = -inf, so the line through them is flat. With up to three steps the result is Euler's.
    """
    x = wide(x)
    before: tuple[float, Tensor] | None = None  # lambda and data prediction one step back, once lambda is finite
    for t, s in pairwise(times):
        m = middle = prediction(field, x, t)
        if before is not None and s > 0:
            slope = (m - before[1]) / (log_snr(t) - before[0])
            middle = m + (log_snr(s) - log_snr(t)) / 2 * slope
        before = (log_snr(t), m) if t < 1 else None
        x = middle + s / t * (x - middle)  # sigma_s / sigma_t x - alpha_s (e^-h - 1) m, where the h has cancelled
    return x


@dataclass(frozen=True)
class SA:
    """SA-Solver (Xue et al., 2023, arXiv:2309.05019), AWM's sampler: an SDE with the marginals of the ODE.

    Two-step predictor and two-node corrector with one evaluation per step (PEC); both use the same noise. tau scales
    the SDE's noise: 0 is the ODE, 1 reverses the usual diffusion. It is constant within a step. With h the step in
    lambda, the solution of a step is

        x_s = sigma_s / sigma_t e^{-tau^2 h} x_t + sigma_s sqrt(1 - e^{-2 tau^2 h}) z
              + sigma_s * integral of e^{-tau^2 (lambda_s - lambda)} (1 + tau^2) e^lambda m(lambda) dlambda

    and the integral is exact for m linear in lambda. AWM's code differs in two ways. Its weight of the slope is
    alpha_s (1 + tau^2) h^2 / 2 (the paper's appendix D), equal to O(h^3). And it does not correct the first step.
    """

    tau: float = 0.4
    """noise strength"""
    low: float = 0.3
    """add noise in steps that end at this time or later"""
    high: float = 0.9
    """add noise in steps that end at this time or earlier"""

    def __post_init__(self) -> None:
        if not 0 <= self.tau <= MOST_TAU:
            raise ValueError(f"tau, the noise of SA-Solver, must be between 0 and {MOST_TAU}, not {self.tau}")
        if not 0 <= self.low <= self.high <= 1:
            raise ValueError(f"SA-Solver needs 0 <= low <= high <= 1, not low = {self.low} and high = {self.high}")

    def levels(self, times: Sequence[float]) -> list[float]:
        """The times that are evaluated: 0.999 instead of 1, and the last time before 0 is half of the one before it.

        Raises:
            ValueError: the second time is 0.999 or more.
        """
        levels = list(times)
        if len(levels) > 2:
            levels[-2] = levels[-3] / 2
        levels[0] = 0.999
        if levels[1] >= levels[0]:
            raise ValueError(
                f"SA-Solver starts at time 0.999, so the second time must be smaller, not {levels[1]:.6g}; "
                "use fewer steps or a smaller shift"
            )
        return levels

    def __call__(self, field: Field, x: Tensor, times: Sequence[float], noise: Noise) -> Tensor:
        levels = self.levels(times)
        x = wide(x)
        m, slope = prediction(field, x, levels[0]), None  # slope: of m in lambda, over the step before
        for step, (t, s) in enumerate(pairwise(levels[:-1])):
            tau = self.tau if self.low <= s <= self.high else 0.0
            h, k = log_snr(s) - log_snr(t), 1 + tau**2
            flat = s / t * exp(-(tau**2) * h) * x - (1 - s) * expm1(-k * h) * m  # the solution for a constant m
            if tau > 0:
                flat = flat + s * sqrt(-expm1(-2 * tau**2 * h)) * noise(step).to(x)
            tilt = (1 - s) * (h + expm1(-k * h) / k)  # added to it by a slope of 1
            ahead = prediction(field, flat if slope is None else flat + tilt * slope, s)
            m, slope = ahead, (ahead - m) / h
            x = flat + tilt * slope
        return m  # at s = 0 the solution is the data prediction


SOLVERS: dict[str, Solver] = {"euler": euler, "dpm2": dpm2, "sa": SA()}  # of velocities; `jump` needs averages
