"""One Gaussian step t -> s:   x_s = P x_t + Q v(x_t, t) + sigma z,   z ~ N(0, I).

The law that draws a step is the one that scores it, so a law is three numbers and knows nothing of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, inf, pi, sin, sqrt
from typing import Literal, Protocol


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


def _strength(name: str, value: float) -> None:
    if not 0 <= value < inf:
        raise ValueError(f"the noise of {name} must be a finite number, at least 0, not {value}")


def _law(t: float, s: float, c: float, sigma: float) -> tuple[float, float, float]:
    """(P, Q, sigma) of x_s = (1 - s) x0 + c eps + sigma z, x0 and eps as v predicts them at t; sigma = 0 is Euler's."""
    if sigma == 0 and c == s:
        return 1.0, s - t, 0.0  # literally, so that it is Euler's step to the last bit
    return (1 - s) + c, c * (1 - t) - t * (1 - s), sigma


@dataclass(frozen=True)
class FlowSDE:
    """Euler-Maruyama on dx = (v + g^2 eps / 2t) dt + g dw with g^2 = a^2 t / (1 - t) (Flow-GRPO, arXiv:2505.05470).

    Its marginals are the ODE's in the limit of small steps; a finite step leaves too much noise, a late one most of
    all. g is infinite at t = 1, where 1 - t is replaced by that of the `first` level below: the step is then
    ((1 - a^2 / 2), -(t - s), a), whatever the grid.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        _strength("FlowSDE", self.a)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        """Raises ValueError at t = 1 without `first`."""
        if self.a == 0:
            return ODE().coefficients(t, s)
        if t == 1 and first is None:
            raise ValueError("FlowSDE is singular at t = 1: say which level comes first below it")
        left = 1 - (first if t == 1 and first is not None else t)
        return _law(t, s, s - self.a**2 * (t - s) / (2 * left), self.a * sqrt(t * (t - s) / left))


@dataclass(frozen=True)
class DanceSDE:
    """The same with a constant g = eta (DanceGRPO, arXiv:2505.07818). Stiff near t = 0, where g^2 / 2t grows."""

    eta: float = 0.3

    def __post_init__(self) -> None:
        _strength("DanceSDE", self.eta)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        return _law(t, s, s - self.eta**2 * (t - s) / (2 * t), self.eta * sqrt(t - s))


@dataclass(frozen=True)
class LinearSDE:
    """The same with g = scale * t, which falls with the noise that is left.

    Flow-GRPO's script for video has the first level below 1 as the scale, which its shifted grid puts close to 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _strength("LinearSDE", self.scale)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        g = self.scale * t
        return _law(t, s, s - g**2 * (t - s) / (2 * t), g * sqrt(t - s))


@dataclass(frozen=True)
class DDIM:
    """DDIM with noise eta (Song et al., 2021, arXiv:2010.02502): sigma = eta s sqrt(1 - e^{-2h}), c^2 + sigma^2 = s^2.

    h is the step in log((1 - t) / t). Noise and prediction share the level s, so the state never has too much. The law
    is the same on a variance-preserving schedule (DDPO, arXiv:2305.13301): scaling a state by a + b, with a and b its
    shares of signal and noise, leaves h, eta and the ratio of two policies as they are. eta = 1 is the first-order
    SDE-DPM-Solver++. Close to FlowSDE(sqrt(2) eta) for small steps, and regular at both ends.
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"the noise of DDIM must lie in [0, 1], not {self.eta}")

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        kept = s * (1 - t) / (t * (1 - s))  # e^{-h}
        sigma = self.eta * s * sqrt(1 - kept**2)
        return _law(t, s, s if sigma == 0 else s * sqrt(1 - self.eta**2 + (self.eta * kept) ** 2), sigma)


@dataclass(frozen=True)
class CPS:
    """Coefficients-preserving sampling (Wang and Yu, 2025, arXiv:2509.05952): sigma = s sin(eta pi / 2), c = s cos.

    The state has the level s exactly; but a fixed share of its noise is fresh whatever the length of a step, so the
    marginals are not those of the ODE, however many steps: samples of a wide distribution come out narrower.
    """

    eta: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"the noise of CPS must lie in [0, 1], not {self.eta}")

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        if self.eta == 0:
            return _law(t, s, s, 0.0)
        return _law(t, s, s * cos(self.eta * pi / 2), s * sin(self.eta * pi / 2))


def excess(law: Law, t: float, s: float, first: float | None = None) -> float:
    """sqrt(c^2 + sigma^2) / s: the noise in the state after a step over what its level calls for (1: as it should be).

    Infinite where a step to s = 0 leaves any.
    """
    p, _, sigma = law.coefficients(t, s, first)
    c = p - (1 - s)
    left = sqrt(c**2 + sigma**2)
    return left / s if s > 0 else (inf if left > 1e-12 else 1.0)


LawName = Literal["flow-sde", "dance-sde", "linear-sde", "ddim", "cps"]
LAWS: dict[LawName, Callable[[float], Law]] = {
    "flow-sde": FlowSDE,
    "dance-sde": DanceSDE,
    "linear-sde": LinearSDE,
    "ddim": DDIM,
    "cps": CPS,
}
"""Laws that add noise, by name; each takes the strength of it."""
