"""The minimiser of a loss over all velocity fields, computed exactly and compared with exact optima.

At a fixed noisy point, the loss is averaged over all possible x0 with their posterior probabilities. Newton's method
finds the velocity at which the mean gradient is 0. The optima are velocities of tilted worlds: the maximisers of
E[R] - tau KL (`kl`) and of E[R] - gamma/2 chi^2 (`chi_square`). All methods have the same first-order gain 1 / GAMMA of
E[v - v_old] over Cov(R, u | x_t), so their distances from the optima can be compared.

Losses that compare the samples of a prompt couple velocities at different points. They have no such minimiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from ..algorithms import objectives
from ..algorithms.algorithm import Algorithm
from ..learning.points import Points, Renoise
from ..process.policy import Condition
from .check import Check, Equation, compared, equation, number, real, slope
from .worlds import Affine, Discrete, chi_square_tilt, covariance_with_velocity, kl_tilt, weight_given_noisy

GAMMA = 1.1
Loss = Callable[[Points, Tensor], Equation]  # (points, old velocities there) -> equation
Advantage = Callable[[Tensor], Tensor]  # samples -> advantages


@dataclass(frozen=True)
class Distance:
    """Distance of a method's minimiser from each exact optimum v*: RMS, relative to the RMS of v* - v_old."""

    algorithm: str
    method: str
    kl: float
    chi_square: float


@dataclass(frozen=True)
class Fields:
    """A discrete world of 200 atoms in eight dimensions, eight noisy points, and the exact velocities there."""

    world: Discrete
    reward: Affine  # mean 0, at most 1 in size
    x: Tensor  # [Z, D]
    t: Tensor  # [Z]
    old: Tensor
    kl: Tensor
    chi_square: Tensor
    covariance: Tensor  # Cov(R, u | x_t)
    weight: Tensor  # [Z, 1] W_t, of the KL tilt
    given: Tensor  # [Z, 1] E[R | x_t]

    def points(self, advantage: Tensor) -> tuple[Points, Tensor]:
        """All atoms at all noisy points [Z * K], and their posterior probabilities."""
        z, k = len(self.x), len(self.world.atoms)
        at, atom = torch.arange(z).repeat_interleave(k), torch.arange(k).repeat(z)
        p = self.world.posterior(self.x, self.t).weights.flatten()
        return behind(self.x[at], self.t[at], self.world.atoms[atom], advantage[atom]), p


def behind(x_t: Tensor, t: Tensor, x0: Tensor, advantage: Tensor) -> Points:
    """Training points from noisy points x_t and possible samples x0."""
    nothing = torch.zeros(len(t), dtype=torch.long)
    eps = (x_t - (1 - t)[:, None] * x0) / t[:, None]
    return Points(x_t, t, Condition({"id": nothing}), x0, eps, advantage, nothing, nothing.bool())


@cache
def fields() -> Fields:
    """The world, noisy points and exact velocities that all methods are compared in."""
    world = Discrete(real(200, 8) / 2, real(200, seed=1).exp())
    direction = real(8, seed=2) / 2
    raw = Affine(lambda x: (x @ direction).sin(), 1.0, 0.0)
    centred = Affine(raw, 1.0, -world.mean(raw))
    reward = Affine(centred, 1 / centred(world.atoms).abs().max().item(), 0.0)
    t = torch.tensor([0.4, 0.5, 0.6, 0.65, 0.7, 0.8, 0.9, 1.0], dtype=torch.float64)
    x = (1 - t[:, None]) * world.atoms[:8] + t[:, None] * real(8, 8, seed=3)
    tilted, stepped = kl_tilt(world, reward, GAMMA), chi_square_tilt(world, reward, GAMMA)
    return Fields(
        world, reward, x, t, world.velocity(x, t), tilted.velocity(x, t), stepped.velocity(x, t),
        covariance_with_velocity(world, reward, x, t), weight_given_noisy(tilted, world, x, t)[:, None],
        world.given(x, t, reward).value[:, None],
    )  # fmt: skip


def minimiser(loss: Loss, advantage: Tensor) -> Tensor:
    """The velocity at which the mean gradient is 0 and the loss rises in all directions, [Z, D]; NaN if there is none.

    Newton's method from the old velocity. The Jacobian uses differences of the gradient, because detached factors of a
    loss depend on v, but autograd ignores them.
    """
    f = fields()
    points, p = f.points(advantage)
    rows = len(p) // len(f.x)
    field = loss(points, f.old.repeat_interleave(rows, 0))

    def gradient(v: Tensor) -> Tensor:
        each = slope(field, v.repeat_interleave(rows, 0)) * p[:, None]
        return each.view(len(v), rows, -1).sum(1)

    v, step = f.old.clone(), 1e-3 * torch.eye(f.x.shape[1], dtype=torch.float64)
    for _ in range(50):
        jacobian = torch.stack([(gradient(v + way) - gradient(v - way)) / 2e-3 for way in step], -1)
        change, singular = torch.linalg.solve_ex(jacobian, gradient(v))
        if singular.any():  # a loss without a minimum
            return torch.full_like(v, math.nan)
        v = v - change
        if change.abs().max() < 1e-12:
            break
    rises = torch.linalg.eigvalsh(jacobian + jacobian.mT).min() > 0
    return v if rises and change.abs().max() < 1e-9 else torch.full_like(v, math.nan)


def _of(kind: Callable[..., Any], **setting: Any) -> Loss:
    return lambda points, old: equation(kind(**setting), points, old, old)


def _bare_nft(beta: float, clip: float = 1.0) -> Loss:
    """DiffusionNFT without denominators and reference."""
    return lambda points, old: partial(
        objectives.diffusion_nft, v_old=old, v_ref=None, x_t=points.x_t, t=points.t, x0=points.x0,
        advantage=points.advantage, beta=beta, clip=clip, k_ref=0.0, denominator=False,
    )  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A loss, the advantages of the atoms, and the expected minimiser if it has a closed form."""

    name: str
    loss: Loss
    advantage: Tensor
    law: str = ""
    field: Tensor | Callable[[Tensor], Tensor] | None = None  # expected minimiser, or a function of the found one
    source: str = "derived 4"
    listed: bool = True  # whether its distance from the optima is printed


def _weighted(advantage: Tensor, curvature: Tensor) -> Callable[[Tensor], Tensor]:
    """v_old + E[A e / m | x_t] / E[c / m | x_t], m = mean|u - v|: the denominator acts as a weight of the sample."""

    def field(v: Tensor) -> Tensor:
        f = fields()
        points, p = f.points(advantage)
        rows = len(p) // len(f.x)
        u = points.eps - points.x0
        share = (p / (u - v.repeat_interleave(rows, 0)).abs().mean(1)).view(len(v), rows)
        e = u.view(len(v), rows, -1) - f.old[:, None]
        pull = torch.einsum("zk,k,zkd->zd", share, advantage, e)
        return f.old + pull / (share @ curvature)[:, None]

    return field


def methods(name: str, kind: Callable[..., Any]) -> list[Method]:
    """The methods of an algorithm, all with the same first-order gain."""
    f = fields()
    r = f.reward(f.world.atoms)
    tilt = (r / GAMMA).exp()
    w = tilt / (f.world.weights @ tilt) - 1
    plain, one = f.old + f.covariance / GAMMA, torch.ones_like(r)
    weighted = "v_old + E[A e / m] / E[c / m], m = mean|u - v|, c the curvature"
    if name == "advantageflow":
        bare = {"lam": 0.0, "denominator": False}
        quotient = f.old + f.covariance / (GAMMA + f.given)
        return [
            Method("gamma 1.1, bare", _of(kind, gamma=GAMMA, **bare), r, "the velocity of the chi^2 tilt, exactly",
                   f.chi_square, "2605.26013"),
            Method("gamma 1.1, lam 0", _of(kind, gamma=GAMMA, lam=0.0), r, weighted, _weighted(r, r + GAMMA)),
            Method("1-A, bare", _of(kind, **bare), r / GAMMA, "v_old + Cov(A, u | x_t)", plain),
            Method("1-A, lam 0", _of(kind, lam=0.0), r / GAMMA, weighted, _weighted(r / GAMMA, one)),
            Method("gamma 1.1, lam 0.4, bare", _of(kind, gamma=GAMMA, lam=0.4, denominator=False), r,
                   "mean of the chi^2 tilt's velocity and v_ref with weights gamma + E[A | x_t] and lam",
                   f.old + (quotient - f.old) * (GAMMA + f.given) / (GAMMA + 0.4 + f.given), listed=False),
        ]  # fmt: skip
    if name == "flowawr":
        return [
            Method("exact", _of(kind, form="exact", k_ref=0.0), w, "the velocity of the KL tilt, exactly", f.kl),
            Method("velocity", _of(kind, form="velocity", k_ref=0.0), w, "v_old + W (v* - v_old), W = E[w | x_t]",
                   f.old + f.weight * (f.kl - f.old)),
            Method("released", _of(kind, form="released", k_ref=0.0), w, weighted, _weighted(w, one)),
        ]  # fmt: skip
    if name == "diffusion_nft":
        return [
            Method("beta 1.1, bare", _bare_nft(GAMMA), r, "v_old + Cov(A, u | x_t) / beta", plain),
            Method("beta 1.1", _of(kind, beta=GAMMA, k_ref=0.0), 5 * r),
        ]
    if name == "awm":
        tether = {"k_old": GAMMA, "k_ref": 0.0}
        return [
            Method("uniform, tether 1.1", _of(kind, weighting="uniform", **tether), 5 * r,
                   "the velocity of the chi^2 tilt with gamma = tether, exactly", f.chi_square),
            Method("ghuber, tether 1.1", _of(kind, **tether), 5 * r),
        ]  # fmt: skip
    if name == "ram":
        return [
            Method("residual policy, m 1/1.1", _of(kind, m=1 / GAMMA), r,
                   "the velocity of the chi^2 tilt with gamma = 1/m, exactly", f.chi_square, "docs/same.md"),
            Method("residual old, m 1/1.1", _of(kind, m=1 / GAMMA, residual="old"), r,
                   "v_ref + m Cov(A, u | x_t)", plain, "docs/same.md"),
        ]  # fmt: skip
    if name == "rvm":
        return [
            Method("gain 1, beta 1.1", _of(kind, gain=1.0, beta=GAMMA), r,
                   "the velocity of the chi^2 tilt with gamma = beta / gain, exactly", f.chi_square, "docs/same.md"),
        ]  # fmt: skip
    return []


def laws(name: str, kind: Callable[..., Any]) -> Iterator[Check | Distance]:
    """Check each closed form, and measure the distance of every method from both optima."""
    f = fields()
    for method in methods(name, kind):
        found = minimiser(method.loss, method.advantage)
        if method.field is not None:
            field = method.field if isinstance(method.field, Tensor) else method.field(found)
            law = f"{method.name}, over all samples: {method.law}"
            yield compared(law, method.source, found - f.old, field - f.old, 1e-9)
        if method.listed:
            yield Distance(name, method.name, _apart(found, f.kl), _apart(found, f.chi_square))


def own(name: str, algorithm: Algorithm) -> Iterator[Distance]:
    """Distance of a user's loss from the optima, for advantages of at most 1, if each point has its own loss."""
    if isinstance(algorithm.points, Renoise):
        f = fields()
        found = minimiser(lambda points, old: equation(algorithm, points, old, old), f.reward(f.world.atoms))
        yield Distance(name, "as it is, |A| <= 1", _apart(found, f.kl), _apart(found, f.chi_square))


def _apart(v: Tensor, optimum: Tensor) -> float:
    return ((v - optimum).square().mean() / (optimum - fields().old).square().mean()).sqrt().item()


# One exact fit in one dimension: pi_old = N(0, 1), R = x, advantages in units of the standard deviation.


def transport(loss: Loss, advantage: Advantage, steps: int = 50) -> tuple[float, float]:
    """Mean and standard deviation of samples drawn with the ODE of the field that minimises the loss.

    The field is exact. Expectations under the posterior N((1-t) x / S, t^2 / S), S = (1-t)^2 + t^2, are sums on a grid.
    The gradient of a quadratic loss is linear in v, so two evaluations determine its root. Initial noise is on a grid.
    """

    def grid(end: float, count: int) -> tuple[Tensor, Tensor]:
        nodes = torch.linspace(-end, end, count, dtype=torch.float64)
        return nodes, (-(nodes**2) / 2).softmax(0)

    (x, weight), (nodes, p), h = grid(6, 121), grid(7, 141), 1 / steps

    def field(x: Tensor, t: float) -> Tensor:
        spread = (1 - t) ** 2 + t**2
        x0 = ((1 - t) / spread * x[:, None] + t / math.sqrt(spread) * nodes).reshape(-1, 1)
        x_t, time = x.repeat_interleave(len(nodes))[:, None], torch.full((len(x0),), t, dtype=torch.float64)
        old = (t - (1 - t)) / spread * x_t
        error = loss(behind(x_t, time, x0, advantage(x0[:, 0])), old)
        at = [slope(error, torch.full_like(x0, v)).view(len(x), -1) @ p for v in (0.0, 1.0)]
        rise = at[1] - at[0]
        return -at[0] / rise.where(rise > 0, math.nan)  # NaN at a maximum

    for k in range(steps):
        t = 1 - k * h
        x = x - h * field(x - h / 2 * field(x, t), t - h / 2)
    mean = weight @ x
    return mean.item(), (weight @ (x - mean) ** 2).sqrt().item()


@dataclass(frozen=True)
class Gain:
    """A method, and the expected mean and standard deviation after one exact fit of N(0, 1) with R = x."""

    name: str
    loss: Loss
    advantage: Advantage
    mean: float
    deviation: float


def _gains(name: str, kind: Callable[..., Any]) -> list[Gain]:
    """Expected gains. The KL tilt is N(1, 1). The chi^2 tilt (1 + A / gamma) p has the mean Cov(A, R) / gamma and, as A
    is odd, E[x^2] = 1. For the others, four digits from the ODE of v_old - t / S E[grad A | x_t] (Stein).
    """

    def one(x: Tensor) -> Tensor:
        return x.clamp(-1, 1)

    def five(x: Tensor) -> Tensor:
        return x.clamp(-5, 5)

    def tilt(x: Tensor) -> Tensor:
        return (x - 0.5).exp() - 1

    def stepped(gamma: float) -> Gain:
        mean = math.erf(math.sqrt(0.5)) / gamma  # E[x clip(x)] = P(|x| < 1)
        return Gain(f"gamma {gamma:g}, clip 1", flow(gamma=gamma), one, mean, math.sqrt(1 - mean**2))

    flow = partial(_of, kind, lam=0.0, denominator=False)
    form = partial(_of, kind, k_ref=0.0)
    table = {
        "advantageflow": [Gain("1-A, clip 1", flow(gamma="1-A"), one, 0.6615, 0.9345), stepped(1.1), stepped(5.0)],
        "flowawr": [
            Gain("exact, the KL tilt", form(form="exact"), tilt, 1.0, 1.0),
            Gain("velocity, clip 3", form(form="velocity"), lambda x: tilt(x).clamp_max(3), 0.9365, 1.2262),
        ],
        "diffusion_nft": [
            Gain("bare, beta 1, clip 5", _bare_nft(1.0, 5.0), five, 0.2, 1.0),
            Gain("bare, beta 0.1, clip 5", _bare_nft(0.1, 5.0), five, 1.9998, 0.9994),
        ],
    }
    return table.get(name, [])


def gains(name: str, kind: Callable[..., Any]) -> Iterator[Check]:
    """Check mean and standard deviation after one exact fit."""
    for gain in _gains(name, kind):
        mean, deviation = transport(gain.loss, gain.advantage)
        yield number(f"{gain.name}: mean of N(0, 1) after one exact fit, R = x", "derived 5", mean, gain.mean, 1e-4)
        yield number(f"{gain.name}: standard deviation after that fit", "derived 5", deviation, gain.deviation, 1e-4)
