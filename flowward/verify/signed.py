"""Laws of losses without an old policy in their target: RVM, RAM and V-GRPO. For notation see laws.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ..algorithms import RAM, AdvantageFlow, DiffusionNFT, FlowAWR
from ..algorithms.algorithm import Algorithm
from ..learning.credit import group_mean
from ..process.flow import clean, mean, over
from .check import (
    AUTOGRAD,
    Check,
    Kind,
    N,
    Setting,
    compared,
    differences,
    equation,
    number,
    pull,
    rests,
    scaled,
    slope,
)
from .population import behind, fields
from .worlds import Gaussian, Linear, Mixture, Quadratic, World, covariance_with_velocity, kl_tilt

RAM_PAPER, RVM_PAPER, VGRPO_PAPER = "2605.10759", "2608.23664", "2604.23380"
SAME = "docs/same.md"


def rvm(kind: Kind) -> Iterator[Check]:
    s, on = Setting.random(5.0), Setting.random(7.0, on_policy=True)
    a = s.points.advantage
    found = on.slope(kind())
    half = pull(on, 0.1 * on.points.advantage.clamp(-5, 5) / 2)
    yield compared("on policy: gradient -(1/N) 0.1 A e, A clipped to +-5", RVM_PAPER, found, half)
    push = over(0.3 * a, s.v) * (s.v - s.u) + 0.4 * (s.v - s.reference)
    own = kind(gain=0.3, beta=0.4)
    yield compared("gradient (1/N) [gain A (v - u) + beta (v - v_ref)]", RVM_PAPER, s.slope(own), push / N)
    value = s.of(own)(s.v)
    yield compared("its value is half the mean square of that, never below 0", SAME, value, mean(push**2) / 2)
    flow = AdvantageFlow(gamma=0.0, lam=0.4, denominator=False, space="velocity", signed=True)
    law = "gradient of AdvantageFlow(gamma 0, lam = beta) in velocity space, halved, at every v"
    yield compared(law, SAME, s.slope(own), scaled(s, 0.3).slope(flow) / 2)
    law = "gradient of gain times RAM with m = gain / beta, at every v"
    yield compared(law, SAME, s.slope(own), 0.3 * s.slope(RAM(m=0.3 / 0.4)))
    yield from _shifted(kind)


def _shifted(kind: Kind) -> Iterator[Check]:
    """Over all samples behind a noisy point, A + C adds C (v - E[u | x_t]) to the update."""
    f, size = fields(), fields().x.shape[1]
    r = f.reward(f.world.atoms)
    for what, v in (("v = E[u | x_t]", f.old), ("any v", f.old + 0.1)):
        each = []
        for shift in (0.0, 0.7):
            points, p = f.points(r + shift)
            rows = v.repeat_interleave(len(p) // len(v), 0)
            gradient = slope(equation(kind(gain=1.0), points, rows, rows), rows) * p[:, None]
            each.append(gradient.view(len(v), -1, size).sum(1))
        law = f"over all samples, {what}: A + C changes the expected gradient by C (v - E[u | x_t]) / N"
        yield compared(law, SAME, each[1] - each[0], 0.7 * (v - f.old) / size)


def ram(kind: Kind) -> Iterator[Check]:
    s, on, m = Setting.random(), Setting.random(on_policy=True), 3.0
    a = s.points.advantage
    found = torch.stack([on.slope(kind(m=each)) for each in (0.5, 100.0)])
    expected = pull(on, on.points.advantage / 2).expand_as(found)
    yield compared("on policy, any m: gradient -(1/N) A e", RAM_PAPER, found, expected)
    for residual, fit, said in (("policy", s.v, "u - v"), ("old", s.old, "u - v_old")):
        target = s.reference + over(m * a, s.v) * (s.u - fit)
        published = slope(lambda v, target=target: mean((v - target) ** 2), s.v)  # type: ignore[misc]
        law = f"residual {residual}: gradient of |v - sg[v_ref + m A ({said})]|^2 / 2m"
        yield compared(law, RAM_PAPER, s.slope(kind(m=m, residual=residual)), published / (2 * m))
    released, awr = kind(m=m, residual="old"), FlowAWR(form="velocity", k_ref=0.0)
    law = "residual old: 2m gradient = FlowAWR's (velocity, m A) + (2/N) (v_old - v_ref)"
    shifted = scaled(s, m).slope(awr) + 2 / N * (s.old - s.reference)
    yield compared(law, SAME, 2 * m * s.slope(released), shifted)
    near = replace(s, v=s.old)
    law = "both residuals have one gradient where v = v_old"
    yield compared(law, SAME, near.slope(released), near.slope(kind(m=m)))
    best = s.reference + over(m * a, s.v) * (s.u - s.old)
    yield rests("residual old: minimum at v_ref + m A (u - v_old)", RAM_PAPER, s.of(released), best)
    low = kind(m=0.5)
    best = (over(a, s.v) * s.u + 2 * s.reference) / over(a + 2, s.v)
    yield rests("residual policy, |A| < 1/m: minimum at (A u + v_ref / m) / (A + 1/m)", SAME, s.of(low), best)
    yield from _resting(kind)


NOISY = ((0.9, 1.0), (0.5, -0.4), (0.2, 1.3))


def _resting(kind: Kind) -> Iterator[Check]:
    """At which velocity the expected gradient is 0, in worlds of one number, where a linear reward is exact."""
    p, reward = Gaussian(torch.tensor([0.3]), torch.tensor([[0.64]])), Linear(torch.tensor([1.0]))
    q = kl_tilt(p, reward, 0.8)
    exact = torch.stack([_gap(q, p, *at) for at in NOISY])
    for residual in ("policy", "old"):
        moved = torch.stack([_root(kind(m=1.25, residual=residual), q, p, reward, *at) for at in NOISY])
        law = f"Gaussian, linear reward, residual {residual}: under the exact tilt it rests at the tilt's velocity"
        yield compared(law, SAME, moved, exact, 1e-10)
    p, square = Gaussian(torch.zeros(1), torch.eye(1)), Quadratic(torch.eye(1), torch.zeros(1))
    q = kl_tilt(p, square, 1.0)
    for what, world in (("under the exact tilt", q), ("under the reference, its first step", p)):
        moved = torch.stack([_root(kind(m=1.0, residual="old"), world, p, square, *at) for at in NOISY])
        short = torch.stack([covariance_with_velocity(world, square, *_place(*at))[0, 0] for at in NOISY])
        law = f"Gaussian, R = -x^2/2, residual old: v - v_ref where it rests {what}"
        yield compared(law, SAME, moved, short, 1e-10)


def _place(t: float, x: float) -> tuple[Tensor, float]:
    return torch.full((1, 1), x, dtype=torch.float64), t


def _gap(q: World, p: World, t: float, x: float) -> Tensor:
    """v_q - v_p, []."""
    return (q.velocity(*_place(t, x)) - p.velocity(*_place(t, x)))[0, 0]


def _root(algorithm: Algorithm, world: World, p: World, reward: Linear | Quadratic, t: float, x: float) -> Tensor:
    """v - v_ref where the expected gradient over samples of `world` at x_t = x is 0; it is linear in v, []."""
    assert isinstance(world, Mixture)  # of one Gaussian
    place, _ = _place(t, x)
    mu, variance = world.means[0, 0], world.covariances[0, 0, 0]
    spread = (1 - t) ** 2 * variance + t**2
    centre = mu + (1 - t) * variance / spread * (x - (1 - t) * mu)
    nodes = torch.linspace(-9, 9, 361, dtype=torch.float64)
    x0 = (centre + (t**2 * variance / spread).sqrt() * nodes)[:, None]
    weight = (-(nodes**2) / 2).softmax(0)
    a = reward(x0) - world.mean(reward)
    points = behind(place.expand_as(x0), torch.full((len(x0),), t, dtype=torch.float64), x0, a)
    old, ref = (each.velocity(place, t).expand_as(x0) for each in (world, p))
    loss = equation(algorithm, points, old, ref)
    at_0, at_1 = (weight @ slope(loss, torch.full_like(x0, v))[:, 0] for v in (0.0, 1.0))
    return at_0 / (at_0 - at_1) - ref[0, 0]


def vgrpo(kind: Kind) -> Iterator[Check]:
    s, on = _images(), _images(on_policy=True)
    a, t = on.points.advantage, on.points.t
    share = a * t / mean(on.e.abs())
    found = torch.stack([on.slope(kind(scale=scale, beta=beta)) for scale in ("own", "old") for beta in (0.0, 0.3)])
    law = "on policy, any scale and beta: gradient -(2/N) A t e / mean|e|"
    yield compared(law, VGRPO_PAPER, found, pull(on, share).expand_as(found))
    soft = on.slope(kind(soft_clip=0.5))
    yield compared("on policy, softened: A is c tanh(A / c)", VGRPO_PAPER, soft,
                   pull(on, 0.5 * (a / 0.5).tanh() * t / mean(on.e.abs())))  # fmt: skip
    law = "on policy: gradient of AdvantageFlow with its denominator, and of DiffusionNFT"
    others = torch.stack([on.slope(AdvantageFlow()), on.slope(DiffusionNFT())])
    yield compared(law, SAME, on.slope(kind()).expand_as(others), others)
    yield compared("on policy, the ratio is exactly 1: loss -A", VGRPO_PAPER, on.of(kind())(on.v), -a, 0.0)
    for scale in ("own", "old"):
        rho = _implied(s, scale).exp()
        value = torch.maximum(-s.points.advantage * rho, -s.points.advantage * rho.clamp(0.9, 1.1))
        law = f"scale {scale}: loss max(-A rho, -A clip(rho)), rho = exp of the mean over an image's draws"
        yield compared(law, VGRPO_PAPER, s.of(kind(clip=0.1, scale=scale))(s.v), value)
    held = kind(beta=0.7)
    silent = replace(s, points=replace(s.points, advantage=torch.zeros_like(a)))
    tether = 0.7 * mean((clean(s.points.x_t, t, s.v) - clean(s.points.x_t, t, s.old)) ** 2)
    yield compared("if A = 0: loss beta |f - f_old|^2", VGRPO_PAPER, silent.of(held)(s.v), tether)
    yield from _moving(kind)
    yield differences(f"{AUTOGRAD}, scale old, clip inactive", s.of(kind(scale="old", clip=0.1)), _near(s, 1e-3).v)


def _images(on_policy: bool = False) -> Setting:
    """Two images of four draws each: one sample and one advantage per image."""
    s = Setting.random(on_policy=on_policy)
    first = torch.arange(8) // 4 * 4
    x0, eps = s.points.x0[first], s.points.eps
    x_t = x0 + over(s.points.t, x0) * (eps - x0)
    return replace(s, points=replace(s.points, x0=x0, x_t=x_t, advantage=s.points.advantage[first + 1]))


def _near(s: Setting, size: float) -> Setting:
    return replace(s, v=s.old + size * s.d)


def _implied(s: Setting, scale: str) -> Tensor:
    """s - s_old by its definition, [B]."""
    p = s.points
    f, f_old = (clean(p.x_t, p.t, v) - p.x0 for v in (s.v, s.old))
    divisor = mean(f_old.abs())
    change = mean(f_old**2) / divisor - mean(f**2) / (mean(f.abs()) if scale == "own" else divisor)
    return group_mean(change, p.group)


def _moving(kind: Kind) -> Iterator[Check]:
    """How far the value of log rho moves, over how far its gradient says, when all errors shrink in proportion."""
    s, step = _images(), 0.01
    one = replace(s, points=replace(s.points, advantage=torch.ones_like(s.points.t)), v=s.old)
    for scale, expected in (("own", 0.5), ("old", 1.0)):
        loss = one.of(kind(scale=scale, clip=0.1))
        ahead, behind_ = (loss(s.old + sign * step * s.e) for sign in (1, -1))
        moved = (-ahead).log() - (-behind_).log()
        said = -(slope(loss, s.old) * s.e).flatten(1).sum(1)
        ratio = (moved.sum() / (2 * step) / said.sum()).item()
        law = f"scale {scale}: log rho moves {expected:g} times as far as its gradient says"
        yield number(law, SAME, ratio, expected, 1e-10)
    clipped = replace(s, v=s.old + 0.5 * s.e)  # errors half as large: rho far above 1
    still = clipped.slope(kind(clip=0.01)).flatten(1).abs().amax(1) == 0
    share = (still == (s.points.advantage > 0)).double().mean().item()
    yield number("beyond the clip, an image with A > 0 has no gradient: share of points", VGRPO_PAPER, share, 1, 0)


LAWS: dict[str, Callable[[Kind], Iterator[Check]]] = {"ram": ram, "rvm": rvm, "vgrpo": vgrpo}
