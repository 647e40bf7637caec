"""AdvantageFlow's gamma chosen by the run itself: `gamma: auto` (ours; docs/notes/auto_gamma.md).

The paper names a fixed gamma, 1.1. What it does depends on the advantages: the minimiser of the loss is the velocity of
q = (1 + A / gamma) pi_old, whose effective sample size is 1 / (1 + V / (gamma + mean A)^2), V = Var A. So gamma is

    gamma = c max(1 / G - min A, sqrt(V eta / (1 - eta)) - mean A)              eta = 0.7, G = 10, 1/3 <= c <= 8

The first part of max caps the gain 1 / (gamma + A) of a point at G. The second gives q the effective size eta: 1.097
for A = clip(N(0, 1), 1), the paper's value. Var and mean are averages over about ten iterations.

The factor c is feedback. In each iteration K = KL(old || policy) is measured in nats, on points of the last optimiser
step and before `old` follows. Above 1 nat c grows by half, below a quarter of a nat it shrinks by a sixth. A line
search says if gamma is to blame. With d = v - v_old and e = u - v_old, the loss is smallest along d at

    alpha* = E[A mean(d e) + lambda mean(d r)] / E[(A + gamma + lambda) mean(d^2)],     r = v_ref - v_old

Below 0.5 the policy has gone past the minimum of its loss. That is a fault of the learning rate, or noise of single
updates. Then the slope decides: E[A mean(d e)] / E[mean(d^2)] is the derivative of the reward along d, on samples that
the policy has not fitted. If its average is above 0 by two standard errors, the way still leads up, and c falls, to at
least 1/3: points with A + gamma < 0 are then pushed away, and lag and learning rate limit the step. If it is not above
0 by one standard error, c returns to 1. At 1 c stays, and a warning says why.

The loss is divided by gamma (gain form). Its curvature is then 1 + (A + lambda) / gamma, so a larger gamma shortens the
step and never makes a learning rate unstable.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from math import exp, sqrt
from typing import Any

import torch
from torch import Tensor

from ..learning.points import Points
from ..learning.terms import ROUNDING
from ..process.flow import mean, wide
from ..process.policy import Models
from ..system.errors import positive
from .algorithm import Loss, Measured, State

REACH = 10.0  # G, the largest gain of a point
LEAST, MOST = 1 / 3, 8.0  # the smallest and the largest c
MEMORY = 10  # iterations that V, mean A and min A are averaged over
RISE, FALL = 1.5, 1.2  # of c
LOW = 0.25  # of the limit: c shrinks below this part of it
SHORT = 0.5  # of the line search: the policy has gone past the minimum
UPHILL, LEVEL = (
    2.0,
    1.0,
)  # standard errors of the slope along d: above the first c may fall, below the second it returns
PATIENCE = 3  # iterations in a row before that is reported
INERT, SLOW = 20.0, 20  # gamma hardly acts if alpha* is larger than the first, so many iterations in a row
UNFIT = 1.5  # mean(e^2) / its first value: velocities that far from E[u | x_t] give no KL
PULL = 0.2  # the largest change of log lambda per iteration
HEAVY = 10.0  # the largest lambda
UNKNOWN = (
    "auto.budget has no effect: the KL from the reference is not known here (guidance other than 1, jumps, or times "
    "that leave out a part of [0, 1]); leave it out, or change that"
)
UNSEEN = 1.1  # gamma before the first advantages: what eta = 0.7 gives for clip(N(0, 1), 1)


@dataclass(frozen=True)
class AutoGamma:
    """What `gamma: auto` aims for."""

    ess: float = 0.7
    """effective sample size of the target, as a share of the samples: nearer 1 is a shorter step"""
    nats: float = 1.0
    """raise gamma if the policy is further from its old copy than this KL, in nats"""
    budget: float | None = None
    """largest KL from the reference model, in nats: lam rises above it (none: no limit)"""

    def __post_init__(self) -> None:
        positive(self, "nats", *(["budget"] if self.budget is not None else []))
        if not 0 < self.ess < 1:
            raise ValueError(f"auto.ess, the effective sample size, must lie between 0 and 1, not {self.ess}")


def effective_size(gamma: float, variance: float, average: float) -> float:
    """ESS of q = (1 + A / gamma) pi_old as a share of the samples; A has this variance and this average."""
    return 1 / (1 + variance / (gamma + average) ** 2)


def gamma_for(variance: float, average: float, lowest: float, ess: float) -> float:
    """The smallest gamma with this effective size of q, or more, and a gain of at most G at A = `lowest`."""
    return max(1 / REACH - lowest, sqrt(variance * ess / (1 - ess)) - average)


def next_factor(factor: float, nats: float, line: float, limit: float, errors: float = 0.0) -> float:
    """c after an iteration that ended `nats` from the old policy, with alpha* = `line`.

    Args:
        errors: standard errors by which the slope along d is above 0 (see `standard_errors`).
    """
    if line < SHORT:
        if errors > UPHILL:
            return max(LEAST, factor / FALL)
        return min(1.0, RISE * factor) if factor < 1 and errors < LEVEL else factor
    if nats > limit:
        return min(MOST, RISE * factor)
    return max(min(1.0, factor), factor / FALL) if nats < LOW * limit else factor


def standard_errors(seen: int, average: float, square: float) -> float:
    """The average of a number over its standard error, 0 for fewer than four: of moving averages over MEMORY values."""
    many = min(seen, 2 * MEMORY - 1)  # as many equal weights have this variance
    spread = max(0.0, square - average**2)
    return average / sqrt(max(spread, 1e-30) / (many - 1)) if many > 3 else 0.0


def next_pull(lam: float, nats: float, budget: float) -> float:
    """lambda after an iteration whose samples were `nats` from the reference."""
    return lam * exp(PULL * min(1.0, max(-1.0, nats / budget - 1)))


def searched(
    points: Points,
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    fit: Tensor,
    curve: Tensor,
    lam: float,
    scale: Tensor,
) -> dict[str, Tensor]:
    """The two sums of the line search, [B] each, from velocities [B, ...].

    Args:
        fit, curve, scale: [B]: the weight of a point's sample, A + gamma + lambda, and the weight of the point.
    """
    old = wide(v_old)
    d, e = wide(v.detach()) - old, wide(points.eps) - wide(points.x0) - old
    along = fit * mean(d * e)
    if v_ref is not None:
        along = along + lam * mean(d * (wide(v_ref) - old))
    way, size = scale * mean(d**2), torch.full_like(along, d[0].numel())
    return {"_along": scale * along, "_bend": curve * way, "_way": way, "_size": size}


@dataclass(frozen=True)
class Course:
    """What `gamma: auto` remembers from one iteration to the next; all numbers, for a checkpoint."""

    lam: float
    seen: int = 0  # iterations with advantages
    variance: float = 0.0
    average: float = 0.0
    lowest: float = 0.0
    forward: float = UNSEEN  # gamma without feedback
    factor: float = 1.0  # c
    ess: float = 1.0  # of q, for the advantages of this iteration
    past: int = 0  # iterations in a row whose line search was below SHORT
    inert: int = 0  # and above INERT
    residual: float = 0.0  # the first mean(e^2)
    sloped: int = 0  # iterations with a slope along d
    slope: float = 0.0  # its average
    slope_square: float = 0.0  # and that of its square

    @property
    def gamma(self) -> float:
        return self.factor * self.forward

    @property
    def errors(self) -> float:
        """Standard errors by which the slope along d is above 0."""
        return standard_errors(self.sloped, self.slope, self.slope_square)

    def climbed(self, slope: float) -> Course:
        """After an iteration with this slope of the reward along d."""
        share = max(1 / (self.sloped + 1), 1 / MEMORY)
        average, square = (
            was + share * (new - was) for was, new in ((self.slope, slope), (self.slope_square, slope**2))
        )
        return replace(self, sloped=self.sloped + 1, slope=average, slope_square=square)

    @classmethod
    def of(cls, state: State, lam: float) -> Course:
        known = {each.name for each in fields(cls)}
        given: dict[str, Any] = {name: value for name, value in state.items() if name in known}
        return cls(**{"lam": lam, **given})


@dataclass(frozen=True)
class Rule:
    """gamma, and lambda if there is a budget, as functions of a state; see `algorithm.Adaptive`."""

    auto: AutoGamma
    lam: float  # at the start, and the least
    weighed: Callable[[Models, Points, float, float], tuple[Tensor, dict[str, Tensor]]]
    """(models, points, gamma, lambda) -> losses [B] in gain form, and metrics with the sums of the line search"""

    def _now(self, state: State) -> Course:
        """lambda is a setting that another one may replace, unless a budget moves it."""
        now = Course.of(state, self.lam)
        return replace(now, lam=self.lam if self.auto.budget is None else max(self.lam, now.lam))

    def start(self) -> State:
        """Nothing seen yet: c = 1."""
        return asdict(Course(self.lam))

    def seen(self, state: State, advantage: Tensor) -> State:
        """With the advantages [N] of an iteration, of all processes. If all are equal, the last gamma is kept."""
        now, a = self._now(state), advantage.double()
        variance = a.var(correction=0).item() if len(a) else 0.0
        if variance == 0:
            return state
        share = max(1 / (now.seen + 1), 1 / MEMORY)
        smooth = {
            name: (1 - share) * getattr(now, name) + share * value
            for name, value in (("variance", variance), ("average", a.mean().item()), ("lowest", a.min().item()))
        }
        now = replace(now, seen=now.seen + 1, **smooth)
        lowest = min(now.lowest, a.min().item())  # the average alone could leave a point without a minimum
        now = replace(now, forward=gamma_for(now.variance, now.average, lowest, self.auto.ess))
        return asdict(replace(now, ess=effective_size(now.gamma, variance, a.mean().item())))

    def loss(self, state: State) -> Loss:
        """The loss with the gamma of this state."""
        now = self._now(state)

        def loss(models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
            found, watched = self.weighed(models, points, now.gamma, now.lam)
            if now.factor < 1:  # points without a minimum are meant: no fault to warn of
                watched = {name: own for name, own in watched.items() if name != "curvature_min"}
            return found, watched

        return loss

    def learned(self, state: State, measured: Measured) -> tuple[State, dict[str, float], list[str]]:
        """After an iteration, from means over the points of its last optimiser step. Also metrics, and warnings."""
        now, figures = self._now(state), measured()
        told = {"gamma": now.gamma, "gamma_factor": now.factor, "ess": now.ess}
        if self.auto.budget is not None:
            told["lam"] = now.lam
        bend = figures.get("_bend", 0.0)
        line = figures["_along"] / bend if bend > 0 else None
        if line is not None:
            told["line_search"] = line
            past, inert = now.past + 1 if line < SHORT else 0, now.inert + 1 if line > INERT else 0
            now = replace(now, past=past, inert=inert).climbed(figures["_along"] / figures["_way"])
        remarks = [*self._faults(now, line)]
        nats, first = figures.get("old_nats"), now.residual or figures.get("residual", 0.0)
        sure = figures.get("residual", 0.0) <= UNFIT * first
        if nats is not None and line is not None and sure and nats > ROUNDING * figures["_size"]:
            if nats > self.auto.nats and line >= SHORT and now.factor == MOST:
                remarks.append(
                    f"gamma is {MOST:g} times what the advantages ask for, its most, and the policy is still "
                    f"{nats:.2g} nats from its old copy: lower the learning rate, or the decay of the old copy"
                )
            now = replace(now, factor=next_factor(now.factor, nats, line, self.auto.nats, now.errors))
        now = replace(now, residual=first)
        away, budget = figures.get("reference_nats"), self.auto.budget
        if away is None and budget is not None and now.seen == 1:
            remarks.append(UNKNOWN)
        if away is not None and budget is not None:
            now, said = self._held(now, away, budget)
            remarks += said
        return asdict(now), told, remarks

    def _faults(self, now: Course, line: float | None) -> list[str]:
        """What gamma cannot mend, once each time that it begins."""
        if now.past == PATIENCE and line is not None and line < SHORT and now.errors <= UPHILL:
            return [
                f"the policy went past the minimum of its loss in {PATIENCE} iterations in a row (line search "
                f"{line:.2g}, should be near 1): gamma cannot help; lower the learning rate, or use more images per "
                "update"
            ]
        if now.inert == SLOW and line is not None and line > INERT:
            return [
                f"gamma has had almost no effect in {SLOW} iterations (line search {line:.2g}), because the policy "
                "stays close to its old copy: raise the learning rate, or the decay of the old copy"
            ]
        return []

    def _held(self, now: Course, nats: float, budget: float) -> tuple[Course, list[str]]:
        if nats > budget and now.lam >= HEAVY:
            return now, [
                f"the policy is {nats:.2g} nats from the reference model, and lam is at its most, {HEAVY:g}: lower the "
                "learning rate, or raise auto.budget"
            ]
        return replace(now, lam=min(max(HEAVY, self.lam), max(self.lam, next_pull(now.lam, nats, budget)))), []
