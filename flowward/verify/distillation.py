"""Laws of on-policy distillation: where it rests, and what its weights of states mean. For notation see laws.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..algorithms.algorithm import TEACHER
from ..learning.states import State, step_weight, time_weight
from ..process.flow import interpolate, over
from ..process.policy import Condition, Models
from ..process.trajectory import Trajectory
from .check import AUTOGRAD, Check, Kind, N, Setting, compared, differences, equation, number, real, rests, slope
from .worlds import Discrete, Gaussian, Mixture, kl

PAPER, FLOW_OPD, DERIVED = "2605.15055", "2605.08063", "derived 14"
STEPS = 1000  # of a chain that is nearly continuous


def laws(kind: Kind) -> Iterator[Check]:
    s = Setting.random()
    points = states(s, real(8, seed=4).exp())
    loss = equation(kind(), points, s.old, s.reference)
    expected = 2 / N * over(points.weight, s.v) * (s.v - s.old)
    yield compared("gradient (2/N) w (v - v_T)", PAPER, slope(loss, s.v), expected)
    yield from _minima(kind, s)
    tethered = equation(kind(beta=0.4), points, s.old, s.reference)
    best = (s.old + 0.4 * s.reference) / 1.4
    yield rests("beta 0.4: minimum at (v_T + 0.4 v_ref) / 1.4, whatever w", FLOW_OPD, tethered, best)
    yield differences(AUTOGRAD, tethered, s.v)
    yield from _mixture(kind)
    yield from _order(kind, s)
    yield from _chains()
    yield from _silent()
    yield from _between_laws()


LAWS: dict[str, Callable[[Kind], Iterator[Check]]] = {"opd": laws}


def states(s: Setting, weight: Tensor) -> State:
    """The states of a setting with these weights [B]."""
    return State(s.points.x_t, s.points.t, s.points.condition, weight)


def _minima(kind: Kind, s: Setting) -> Iterator[Check]:
    """The same for the weights of each kind of state (T22)."""
    t = s.points.t
    chosen = {
        "(t - s)^2 / 2": step_weight(Trajectory(8).table),
        "Q^2 / 2 sigma^2": step_weight(Trajectory(9, noise=0.7).table),
        "(1 - t) / t": time_weight(t * 0.999),
    }
    for name, weight in chosen.items():
        loss = equation(kind(), states(s, weight), s.old, s.reference)
        yield rests(f"w = {name}: minimum at v_T", PAPER, loss, s.old)


def _mixture(kind: Kind) -> Iterator[Check]:
    """Two teachers, one condition: all states of both, weighted by how probable each teacher is there (T23)."""
    atoms = real(12, 4)
    share = torch.tensor([0.3, 0.7], dtype=torch.float64)
    each = [Discrete(atoms, real(12, seed=seed).exp()) for seed in (1, 2)]
    both = Discrete(atoms, sum(p * world.weights for p, world in zip(share, each, strict=True)))
    t = torch.tensor([0.3, 0.5, 0.7, 0.9, 1.0], dtype=torch.float64)
    x = interpolate(atoms[:5], real(5, 4, seed=3), t)
    taught = [world.velocity(x, t) for world in each]
    seen = torch.stack([p * world.log_prob(x, t).exp() for p, world in zip(share, each, strict=True)])
    posterior = seen / seen.sum(0)
    points = State(x, t, Condition({"id": t}), time_weight(t) + 0.1)
    best = (posterior[..., None] * torch.stack(taught)).sum(0)
    gradient = torch.zeros_like(best)
    for p, v_teacher in zip(posterior, taught, strict=True):
        gradient += over(p, best) * slope(equation(kind(), points, v_teacher, v_teacher), best)
    law = "two teachers, one condition: gradient at sum_k P(k | x_t) v_k"
    yield compared(law, DERIVED, gradient, torch.zeros_like(best), 1e-10)
    law = "two teachers, one condition: that mean is the velocity of the mixture of both"
    yield compared(law, DERIVED, best, both.velocity(x, t), 1e-10)


def _order(kind: Kind, s: Setting) -> Iterator[Check]:
    """The gradient of a step does not depend on the order of its domains (T27)."""
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    points, found = states(s, real(8, seed=4).exp()), []
    for order in (torch.arange(8), torch.tensor([1, 3, 5, 7, 0, 2, 4, 6])):
        models = Models(lambda *_, order=order: scale * s.v[order], **{TEACHER: lambda *_, order=order: s.old[order]})
        loss, _ = kind().loss(models, points[order])
        found.append(torch.autograd.grad(loss.mean(), scale)[0])
    yield compared("gradient of a step, domains in turn and one after the other", PAPER, found[0], found[1], 1e-12)


def _pair() -> tuple[Mixture, Mixture]:
    """Two Gaussians of one number, whose KL is 0.08."""
    means = torch.tensor([[0.7], [0.9]], dtype=torch.float64)
    p, q = (Gaussian(mean, torch.full((1, 1), 0.25)) for mean in means)
    return p, q


def _chains() -> Iterator[Check]:
    """The sum over steps of Q^2 / (2 sigma^2) (v_p - v_q)^2, which is the same at all states of this pair (T24)."""
    p, q = _pair()
    yield number("KL of N(0.7, 0.25) and N(0.9, 0.25)", DERIVED, kl(p, q), 0.08, 1e-12)
    for a, expected in ((0.7, 0.1265), (1.0, 0.09), (math.sqrt(2), 0.08)):
        table = Trajectory(STEPS, 1.0, "linear", noise=a).table
        t, x = table[:, 0], torch.zeros(len(table), 1)
        apart = (p.velocity(x, t) - q.velocity(x, t))[:, 0] ** 2
        law = f"noise {a:.3g}, {STEPS} steps: sum of w (v_p - v_q)^2 is kappa(a) KL, {expected:g}"
        yield number(law, PAPER, (step_weight(table) * apart).sum().item(), expected, 5e-4)


def _silent() -> Iterator[Check]:
    """A step's KL does not depend on its noise, so as a constant advantage it has no gradient (T25)."""
    nodes = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    p = (-(nodes**2) / 2).softmax(0)
    _, _, q, sigma = Trajectory(10, 1.0, "linear", noise=0.7).table[4].tolist()
    v, v_teacher = torch.tensor(0.4, dtype=torch.float64, requires_grad=True), 0.1
    divergence = q**2 / (2 * sigma**2) * (v - v_teacher) ** 2
    log_p = -((q * v.detach() + sigma * nodes - q * v) ** 2) / (2 * sigma**2)
    found = torch.autograd.grad(p @ (-divergence.detach() * log_p), v, retain_graph=True)[0]
    yield number("gradient with a constant -KL as advantage, mean over the noise", FLOW_OPD, found.item(), 0, 1e-12)
    closed = torch.autograd.grad(divergence, v)[0].item()
    law = "gradient of the KL itself: 2 w (v - v_T)"
    yield number(law, FLOW_OPD, closed, q**2 / sigma**2 * 0.3, 1e-12)


def _between_laws() -> Iterator[Check]:
    """The integral of (1 - t) / t E_p (v_p - v_q)^2 is KL(p || q), between two Gaussians of two numbers (T26)."""
    p = Gaussian(torch.tensor([0.2, -0.3]), torch.tensor([[0.5, 0.1], [0.1, 0.3]]))
    q = Gaussian(torch.tensor([-0.1, 0.4]), torch.tensor([[0.4, -0.05], [-0.05, 0.6]]))
    edges = torch.linspace(0, 1, 401, dtype=torch.float64)
    total = sum(_distance(p, q, t) for t in ((edges[:-1] + edges[1:]) / 2).tolist()) / 400
    yield number("integral of (1 - t) / t |v_p - v_q|^2 over KL(p || q)", DERIVED, total / kl(p, q), 1, 0.01)


def _distance(p: Mixture, q: Mixture, t: float) -> float:
    """(1 - t) / t E_p |v_p - v_q|^2 at time t; both velocities are affine in x."""
    zero, unit = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)

    def gap(x: Tensor) -> Tensor:
        return p.velocity(x, t) - q.velocity(x, t)

    offset = gap(zero)
    slopes = gap(unit) - offset  # [2, 2], a row per coordinate of x
    mean = (1 - t) * p.means[:1]
    covariance = (1 - t) ** 2 * p.covariances[0] + t**2 * unit
    square = (offset + mean @ slopes).square().sum() + (slopes.T @ covariance @ slopes).trace()
    return ((1 - t) / t * square).item()
