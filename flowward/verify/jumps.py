"""Laws of jumps: average velocities of a Gaussian whose flow map is known, and MeanFlowAdvantage's loss on them.

Notation: U(x, s, t) is the average velocity from t to s, x_s = x_t - (t - s) U; dhat its slope along the line from x0
to eps; V = U + (t - s) dhat. For the rest see laws.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algorithms import AdvantageFlow
from ..algorithms.meanflow_advantage import semigroup
from ..learning.points import Points
from ..learning.rows import around
from ..learning.terms import error_scale
from ..process.flow import mean, over
from ..process.policy import UNTIL, Condition, Models
from ..process.solvers import jump
from .check import Check, Equation, Kind, N, Setting, compared, number, real, slope

PAPER, MEANFLOW, DERIVED = "2609.37670", "2505.13447", "derived"


@dataclass(frozen=True)
class Line:
    """Data N(mean, scale^2) on a line: velocity and flow map in closed form, float64 [B, 1]."""

    mean: float = 0.3
    scale: float = 0.8

    def spread(self, t: Tensor) -> Tensor:
        """The standard deviation of x_t."""
        return ((1 - t) ** 2 * self.scale**2 + t**2).sqrt()

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """v = E[u | x_t]."""
        a = (t - (1 - t) * self.scale**2) / self.spread(t) ** 2
        return over(a, x) * (x - over(1 - t, x) * self.mean) - self.mean

    def moved(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """x_s, where the flow takes x at t: (x - (1 - t) mean) / spread is conserved."""
        ratio = over(self.spread(s) / self.spread(t), x)
        return over(1 - s, x) * self.mean + ratio * (x - over(1 - t, x) * self.mean)

    def average(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        """U(x, s, t); v where s = t."""
        length = over(torch.where(s == t, 1.0, t - s), x)
        return torch.where(over(s == t, x) > 0, self.velocity(x, t), (x - self.moved(x, t, s)) / length)

    def __call__(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        """As a policy with two times."""
        x, t = x.double(), t.double()
        return self.average(x, t, condition.tensors.get(UNTIL, t).double())

    def slope(self, x: Tensor, t: Tensor, s: Tensor, direction: Tensor) -> Tensor:
        """dU along (direction, 1) in (x, t), with s fixed."""
        found: Tensor = torch.func.jvp(lambda x, t: self.average(x, t, s), (x, t), (direction, torch.ones_like(t)))[1]
        return found


WORLD = Line()
AT = torch.tensor(
    [[0.9, 0.5, 1.0], [0.5, 0.0, -0.4], [0.9, 0.0, 1.3], [1.0, 0.25, -0.7]], dtype=torch.float64
)  # t, s, x
STATED = torch.tensor([[0.406490, 0.716995, 0.693288], [-0.025671, -1.031585, -0.541463]], dtype=torch.float64)


def jumping(seed: int = 7) -> Setting:
    """The random setting, with an end time for each point."""
    s = Setting.random()
    share = torch.rand(len(s.points), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return replace(s, points=replace(s.points, condition=s.points.condition.until(share * s.points.t)))


def meanflow_advantage(kind: Kind) -> Iterator[Check]:
    yield from _identity()
    yield from _equation(kind)
    yield from _one_round(kind)
    x, rows = real(5, 1), Condition({"id": torch.zeros(5)})
    law = "semigroup residual of an exact flow map"
    yield compared(law, DERIVED, semigroup(WORLD, x, rows), torch.zeros(5), 1e-12)
    found = semigroup(lambda x, t, condition: WORLD.velocity(x, t.double()), x, rows)
    yield number(
        f"{law.replace('an exact flow map', 'a velocity')} is not 0 (1: yes)", DERIVED, float(found.min() > 0), 1, 0
    )


def _identity() -> Iterator[Check]:
    """MeanFlow's identity, and what the jumps of a solver are."""
    t, s, x = AT[:, 0], AT[:, 1], AT[:, 2:]
    v, average = WORLD.velocity(x, t), WORLD.average(x, t, s)
    change = WORLD.slope(x, t, s, v)
    yield compared("Gaussian: v = U + (t - s) dU, dU along v", MEANFLOW, average + over(t - s, x) * change, v, 1e-9)
    found = torch.cat([average, change, v], 1)[: len(STATED)]
    yield compared("Gaussian: U, dU and v at (0.9, 0.5, 1) and (0.5, 0, -0.4)", DERIVED, found, STATED, 1e-6)
    start = real(6, 1)
    ends = [jump(_field, start, times, lambda step: start) for times in ((1.0, 0.0), (1.0, 0.7, 0.2, 0.0))]
    exact = WORLD.moved(start, torch.ones(1).double(), torch.zeros(1).double())
    yield compared(
        "solver `jump` with the exact U: samples, for 1 and 3 jumps", MEANFLOW, torch.stack(ends), exact.expand(2, 6, 1)
    )


def _field(x: Tensor, t: float, s: float) -> Tensor:
    return WORLD.average(x, torch.full((len(x),), t, dtype=x.dtype), torch.full((len(x),), s, dtype=x.dtype))


def _anchored(s: Setting, kind: Kind, ahead: Tensor, behind: Tensor, **setting: object) -> Equation:
    """The loss with these velocities of `old` on both sides of the points."""
    points = s.points.knowing({"old ahead": ahead, "old behind": behind})
    algorithm = kind(**setting)

    def loss(v: Tensor) -> Tensor:
        found: Tensor = algorithm.loss(Models(lambda *_: v, lambda *_: s.old, lambda *_: s.reference), points)[0]
        return found

    return loss


def _equation(kind: Kind) -> Iterator[Check]:
    s = jumping()
    ahead, behind = real(2, *s.v.shape, seed=3)
    points, a, t = s.points, s.points.advantage, s.points.t
    low, high = around(t)
    shift = over(t - points.condition.tensors[UNTIL], s.v) * (ahead - behind) / over(high - low, s.v)
    bar = s.u - shift
    squares = [(a, s.v - bar), (1.1 * torch.ones_like(a), s.v - s.old), (0.4 * torch.ones_like(a), s.v - s.reference)]
    scale = error_scale(over(t, s.v) * (s.v - bar))
    expected = t**2 * sum(weight * mean(gap**2) for weight, gap in squares) / scale
    found = _anchored(s, kind, ahead, behind, gamma=1.1, lam=0.4)(s.v)
    law = "value: t^2 [A |U - ubar|^2 + gamma |U - U_old|^2 + lambda |U - U_ref|^2] / t mean|U - ubar|"
    yield compared(law, PAPER, found, expected, 1e-12)
    on = replace(s, v=s.old, reference=s.old)
    found = slope(_anchored(on, kind, ahead, behind), on.v)
    e = bar - s.old
    expected = -2 / N * over(a * t / mean(e.abs()), e) * e
    yield compared("on policy: gradient -(2/N) A t e / mean|e|, e = u - (t - s) dhat - U_old", PAPER, found, expected)
    still = replace(s, points=replace(points, condition=points.condition.until(t)))
    for gamma in (1.1, "1-A"):
        one = _anchored(still, kind, ahead, behind, gamma=gamma, lam=0.4)(s.v)
        other = s.of(AdvantageFlow(gamma=gamma, lam=0.4))(s.v)
        yield compared(f"s = t, gamma {gamma}: the loss of AdvantageFlow, bit for bit", PAPER, one, other, 0.0)


def _posterior(t: float, x: float) -> tuple[Tensor, Tensor]:
    """x0 behind x_t = x, at three nodes that integrate polynomials of degree 5 exactly, and their weights."""
    spread = ((1 - t) ** 2 * WORLD.scale**2 + t**2) ** 0.5
    middle = WORLD.mean + (1 - t) * WORLD.scale**2 / spread**2 * (x - (1 - t) * WORLD.mean)
    nodes = torch.tensor([-(3**0.5), 0.0, 3**0.5], dtype=torch.float64)
    weights = torch.tensor([1 / 6, 2 / 3, 1 / 6], dtype=torch.float64)
    return (middle + WORLD.scale * t / spread * nodes)[:, None], weights


STRENGTH = 1.25  # of the tilt exp(R), R = 1.25 x0
PAIRS = ((0.9, 0.9), (0.9, 0.5), (0.9, 0.0), (0.5, 0.0))  # t, s


def _one_round(kind: Kind) -> Iterator[Check]:
    """What a round of exact minimisation does to jumps of every length, and what it should do."""
    tilted = Line(WORLD.mean + STRENGTH * WORLD.scale**2, WORLD.scale)
    exact, found, whole, plain = [], [], [], []
    for t, s in PAIRS:
        x, start, end = torch.ones(1, 1).double(), torch.tensor([t]).double(), torch.tensor([s]).double()
        exact.append((tilted.average(x, start, end) - WORLD.average(x, start, end)).item())
        plain.append(-STRENGTH * WORLD.scale**2 * t / WORLD.spread(start).item() ** 2)
        whole.append(plain[-1] * (WORLD.spread(end) / WORLD.spread(start)).item())
        found.append(_moved(kind, t, s))
    law = "Gaussian, R = 1.25 x: exact change of U at (t, s) = (.9, .9), (.9, .5), (.9, 0), (.5, 0)"
    stated = torch.tensor([-0.8819, -0.8583, -0.8102, -0.6005], dtype=torch.float64)
    yield compared(law, DERIVED, torch.tensor(exact).double(), stated, 1e-4)
    law = "over all samples, at the same (t, s): U moves by dx_s/dx_t Cov(A, u | x_t)"
    yield compared(law, DERIVED, torch.tensor(found).double(), torch.tensor(whole).double(), 1e-3)
    along = [_moved(kind, t, s, marginal=True) for t, s in PAIRS]
    law = "the same with dhat along v in the place of u: U moves by Cov(A, u | x_t), for every s"
    yield compared(law, DERIVED, torch.tensor(along).double(), torch.tensor(plain).double(), 1e-3)


def _moved(kind: Kind, t: float, s: float, marginal: bool = False) -> float:
    """U* - U_old at x_t = 1 for the samples behind it, gamma 1-A, A = R; dhat along u, or along v if `marginal`."""
    x0, weights = _posterior(t, 1.0)
    times, ends, x = torch.full((3,), t).double(), torch.full((3,), s).double(), torch.ones(3, 1).double()
    eps = (x - (1 - t) * x0) / t
    condition = Condition({"id": torch.zeros(3)}).until(ends)
    points = Points(x, times, condition, x0, eps, STRENGTH * x0[:, 0], torch.arange(3), exemplar=torch.zeros(3).bool())
    old, line = WORLD(x, times, condition), points
    if marginal:  # the line through x_t along v
        v = WORLD.velocity(x, times)
        line = replace(points, x0=x - t * v, eps=x + (1 - t) * v)
    sides = {f"old {name}": WORLD(*line.place(name)) for name in ("ahead", "behind")}
    algorithm, known = kind(gamma="1-A", lam=0.0, denominator=False), points.knowing(sides)

    def total(v: Tensor) -> Tensor:
        loss: Tensor = algorithm.loss(Models(lambda *_: v.expand(3, 1), lambda *_: old, lambda *_: old), known)[0]
        return (weights * loss)[None].sum(1)

    at = old[:1]
    bend = slope(total, at + 1) - slope(total, at)  # the loss is a square in U
    return (-slope(total, at) / bend).item()


LAWS = {"meanflow_advantage": meanflow_advantage}
