"""Noise schedules: one Gaussian step t -> s is   x_s = P x_t + Q v(x_t, t) + sigma z,   z ~ N(0, I).

The same schedule draws a step and computes its log-probability. It only returns (P, Q, sigma), so it needs no tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import cos, exp, expm1, inf, log, pi, sin, sqrt
from typing import Literal, Protocol

MOST_NOISE = 1e6  # strength, if the noise schedule itself has no limit; published ones are about 1


class Law(Protocol):
    """A noise schedule: the Gaussian that a sampler draws each step from."""

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        """(P, Q, sigma) of the step from t to s < t.

        Args:
            first: the first time below 1; schedules that are singular at t = 1 need it there.
        """
        ...


@dataclass(frozen=True)
class ODE:
    """One Euler step of the probability-flow ODE, dx = v dt."""

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        return 1.0, s - t, 0.0


@dataclass(frozen=True)
class Churn:
    """An Euler step past s, then noise back up to s: FDFO's steps, after Karras et al. (2022, arXiv:2206.00364).

    In Karras' noise levels, t / (1 - t), the step ends at r, a factor 1 + gamma below s. Afterwards the signal is 1 - s
    and the total noise is s, so an exact flow keeps every marginal. The step to s = 0 neither overshoots nor adds
    noise. With the x0 and eps that v predicts at t, and k = 1 / (1 + gamma):
    x_s = (1 - s) x0 + s (k eps + sqrt(1 - k^2) z).
    """

    gamma: float = 0.0025
    """overshoot of each step; replaces a share sqrt(1 - (1 + gamma)^-2) of the noise"""

    def __post_init__(self) -> None:
        _refuse_strength("churn (gamma)", self.gamma)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        r = s / (1 + self.gamma - self.gamma * s)
        shrink = 1 / (1 + self.gamma * r)
        return shrink, shrink * (r - t), shrink * r * sqrt(self.gamma * (2 + self.gamma))

    def prior(self) -> tuple[float, float]:
        """(factor, sigma): x <- factor x + sigma z churns the initial noise at t = 1, which stays N(0, I)."""
        return 1 / (1 + self.gamma), sqrt(self.gamma * (2 + self.gamma)) / (1 + self.gamma)


def _refuse_strength(name: str, value: float, most: float = MOST_NOISE) -> None:
    """Raise ValueError unless a noise strength lies in [0, most]."""
    if not 0 <= value <= most:
        raise ValueError(f"the noise of {name} must lie in [0, {most:g}], not {value}")


def _law(t: float, s: float, c: float, sigma: float) -> tuple[float, float, float]:
    """(P, Q, sigma) of x_s = (1 - s) x0 + c eps + sigma z, with the x0 and eps that v predicts at t."""
    if sigma == 0 and c == s:
        return 1.0, s - t, 0.0  # written out, so that the result equals Euler's step bit for bit
    return (1 - s) + c, c * (1 - t) - t * (1 - s), sigma


@dataclass(frozen=True)
class FlowSDE:
    """Euler-Maruyama on dx = (v + g^2 eps / 2t) dt + g dw with g^2 = a^2 t / (1 - t) (Flow-GRPO, arXiv:2505.05470).

    For small steps its marginals approach the ODE's. A finite step leaves too much noise, most of all a late one.
    g is infinite at t = 1. There 1 - t is replaced by 1 - first, and the step is ((1 - a^2 / 2), -(t - s), a) on any
    grid.
    """

    a: float = 0.7

    def __post_init__(self) -> None:
        _refuse_strength("FlowSDE", self.a)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        """(P, Q, sigma) of a step; raises ValueError at t = 1 without `first`."""
        if self.a == 0:
            return ODE().coefficients(t, s)
        if t == 1 and first is None:
            raise ValueError("FlowSDE is singular at t = 1: pass `first`, the first time below 1")
        left = 1 - (first if t == 1 and first is not None else t)
        return _law(t, s, s - self.a**2 * (t - s) / (2 * left), self.a * sqrt(t * (t - s) / left))


@dataclass(frozen=True)
class DanceSDE:
    """Like FlowSDE with a constant g = eta (DanceGRPO, arXiv:2505.07818). Stiff near t = 0, where g^2 / 2t grows."""

    eta: float = 0.3

    def __post_init__(self) -> None:
        _refuse_strength("DanceSDE", self.eta)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        return _law(t, s, s - self.eta**2 * (t - s) / (2 * t), self.eta * sqrt(t - s))


@dataclass(frozen=True)
class LinearSDE:
    """Like FlowSDE with g = scale * t, which decreases with the remaining noise.

    Flow-GRPO's video script uses the first time below 1 as the scale; on its shifted grid that is close to 1.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        _refuse_strength("LinearSDE", self.scale)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        g = self.scale * t
        return _law(t, s, s - g**2 * (t - s) / (2 * t), g * sqrt(t - s))


@dataclass(frozen=True)
class DDIM:
    """DDIM with noise eta (Song et al., 2021, arXiv:2010.02502): sigma = eta s sqrt(1 - e^{-2h}), c^2 + sigma^2 = s^2.

    h is the step in log((1 - t) / t). Fresh and predicted noise together have exactly the level s, never more. On a
    variance-preserving schedule (DDPO, arXiv:2305.13301) the distribution is the same: a state is scaled by a + b, its
    signal and noise coefficients, and h, eta and the ratio of two policies do not change. eta = 1 is the first-order
    SDE-DPM-Solver++. Close to FlowSDE(sqrt(2) eta) for small steps, and regular at t = 0 and t = 1.
    """

    eta: float = 0.5

    def __post_init__(self) -> None:
        _refuse_strength("DDIM", self.eta, most=1)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        kept = s * (1 - t) / (t * (1 - s))  # e^{-h}
        sigma = self.eta * s * sqrt(1 - kept**2)
        return _law(t, s, s if sigma == 0 else s * sqrt(1 - self.eta**2 + (self.eta * kept) ** 2), sigma)


@dataclass(frozen=True)
class CPS:
    """Coefficients-preserving sampling (Wang and Yu, 2025, arXiv:2509.05952): sigma = s sin(eta pi / 2), c = s cos.

    The state has exactly the noise level s. But every step, short or long, replaces a fixed share of the noise.
    So the marginals differ from the ODE's even with many steps: samples of a wide distribution become narrower.
    """

    eta: float = 0.8

    def __post_init__(self) -> None:
        _refuse_strength("CPS", self.eta, most=1)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        if self.eta == 0:
            return _law(t, s, s, 0.0)
        return _law(t, s, s * cos(self.eta * pi / 2), s * sin(self.eta * pi / 2))


@dataclass(frozen=True)
class PRECISE:
    """The exact solution of FlowSDE's step with a constant x0 (Zou et al., 2026, arXiv:2605.23522, and its code).

    While the predicted x0 does not change, eps follows an Ornstein-Uhlenbeck process. So with h the step in
    log((1 - t) / t), x_s = (1 - s) x0 + s (r eps + sqrt(1 - r^2) z) and r = e^{-a^2 h / 2}. Fresh and predicted noise
    together have exactly the level s, and many short steps keep every marginal. PRECISE(sqrt(2)) equals DDIM(1).
    Published strengths are 1 to 2.

    At t = 1, h is infinite and r = 0: the step replaces the initial noise, whatever a is. The released code does so.
    With `held`, g stays constant above the first time below 1, as FlowSDE needs it there. The first step then keeps
    the share e^{-a^2 / 2} of the initial noise on any grid.
    """

    a: float = 0.7
    held: bool = False
    """keep a share of the initial noise in the step from t = 1; needs `first` there"""

    def __post_init__(self) -> None:
        _refuse_strength("PRECISE", self.a)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        """(P, Q, sigma) of a step; raises ValueError if it is `held` and at t = 1 without `first`."""
        if self.a == 0 or s == 0:
            return ODE().coefficients(t, s)
        if t < 1:
            return _kept(t, s, self.a**2 / 2 * log(t * (1 - s) / (s * (1 - t))))
        if not self.held:
            return _kept(t, s, inf)
        if first is None:
            raise ValueError("PRECISE with `held` needs `first`, the first time below 1, at t = 1")
        top = max(s, first)  # g is constant from there to 1
        h = first * (1 - top) / (top * (1 - first)) + log(top * (1 - s) / (s * (1 - top)))
        return _kept(t, s, self.a**2 / 2 * h)

    def remark(self, first: float) -> str:
        """What becomes of the initial noise in the step from t = 1."""
        if self.held:
            return (
                f"step 0 keeps {exp(-(self.a**2) / 2):.0%} of the initial noise: the exact step from t = 1 would keep "
                f"none, so the noise schedule is held constant above t = {first:.3g}"
            )
        return (
            "step 0 replaces the initial noise (precise keeps none of it at t = 1), so images that start from the same "
            "noise have nothing in common; --algorithm.rollout.law precise-held keeps a share"
        )


@dataclass(frozen=True)
class DancePRECISE:
    """The same exact solution of DanceSDE's step, r = e^{-(eta^2 / 2) (1 / s - 1 / t)} (arXiv:2605.23522, its code).

    DanceSDE is stiff near t = 0. This schedule is not, but it needs many steps there. It is regular at t = 1.
    """

    eta: float = 0.3

    def __post_init__(self) -> None:
        _refuse_strength("DancePRECISE", self.eta)

    def coefficients(self, t: float, s: float, first: float | None = None) -> tuple[float, float, float]:
        if self.eta == 0 or s == 0:
            return ODE().coefficients(t, s)
        return _kept(t, s, self.eta**2 / 2 * (1 / s - 1 / t))


def _kept(t: float, s: float, decay: float) -> tuple[float, float, float]:
    """(P, Q, sigma) of a step that keeps the share e^{-decay} of the predicted noise and fills up to the level s."""
    return _law(t, s, s * exp(-decay), s * sqrt(-expm1(-2 * decay)))


def remark(law: Law, first: float) -> str | None:
    """What is worth knowing before a run about a random step from t = 1 to `first`; None for most schedules."""
    return law.remark(first) if isinstance(law, PRECISE) and law.a > 0 else None


def excess(law: Law, t: float, s: float, first: float | None = None) -> float:
    """sqrt(c^2 + sigma^2) / s: noise in the state after a step, relative to the correct level s (1: correct).

    Infinite if a step to s = 0 leaves noise.
    """
    p, _, sigma = law.coefficients(t, s, first)
    c = p - (1 - s)
    left = sqrt(c**2 + sigma**2)
    return left / s if s > 0 else (inf if left > 1e-12 else 1.0)


LawName = Literal["flow-sde", "dance-sde", "linear-sde", "ddim", "cps", "precise", "precise-held", "dance-precise"]
LAWS: dict[LawName, Callable[[float], Law]] = {
    "flow-sde": FlowSDE,
    "dance-sde": DanceSDE,
    "linear-sde": LinearSDE,
    "ddim": DDIM,
    "cps": CPS,
    "precise": PRECISE,
    "precise-held": partial(PRECISE, held=True),
    "dance-precise": DancePRECISE,
}
"""noise schedules by name; each takes its noise strength"""
