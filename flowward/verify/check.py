"""Checks of laws, and the small float64 setting with a few points in which losses are compared with formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from ..algorithms.algorithm import TEACHER, Algorithm
from ..learning.points import Points
from ..learning.rows import Rows
from ..process.flow import interpolate, mean, over
from ..process.policy import Condition, Models
from ..system.streams import generator

Equation = Callable[[Tensor], Tensor]  # the policy's velocities [B, ...] -> the loss of each point [B]
Kind = Callable[..., Any]  # an algorithm's class
T = TypeVar("T")
EXACT = 1e-11  # relative tolerance for float64 rounding
N = 6  # elements of a sample in a Setting
AUTOGRAD = "autograd = central differences"


@dataclass(frozen=True)
class Check:
    """A law in words, and whether it holds: `error <= tolerance`."""

    law: str
    source: str
    expected: float
    measured: float
    error: float
    tolerance: float
    remark: str = ""  # what is wrong, if it does not hold
    algorithm: str = ""
    part: Literal["protocol", "equation"] = "equation"  # law of the program, or of the algorithm's paper

    @property
    def holds(self) -> bool:
        """Whether the error is within the tolerance (never if it is NaN)."""
        return self.error <= self.tolerance


def number(law: str, source: str, measured: float, expected: float, tolerance: float, remark: str = "") -> Check:
    """Compare two numbers; the error is their difference. `remark` is reported if the law does not hold."""
    check = Check(law, source, expected, measured, abs(measured - expected), tolerance)
    if not math.isfinite(measured):
        remark = "not finite"
    return check if check.holds else replace(check, remark=remark or "wrong value")


def compared(law: str, source: str, found: Tensor, expected: Tensor, tolerance: float = EXACT) -> Check:
    """Compare two tensors; the error is the largest difference relative to the largest expected value.

    Both are reported as lengths (RMS) along the expected tensor, so a wrong sign gives a negative number. If 0 is
    expected, the largest measured value is reported, and is the error.
    """
    found, expected = found.detach().double().flatten(), expected.detach().double().flatten()
    largest, length = expected.abs().max().item(), expected.square().mean().sqrt().item()
    error = (found - expected).abs().max().item()
    if largest == 0:
        return number(law, source, error, 0.0, tolerance, "not 0")
    along = (found @ expected / len(expected)).item() / length
    check = Check(law, source, length, along, error / largest, tolerance)
    return check if check.holds else replace(check, remark=_difference(found, along / length, expected))


def _difference(found: Tensor, ratio: float, expected: Tensor) -> str:
    if not found.isfinite().all():
        return "not finite"
    if not found.any():
        return "all values are 0"
    cosine = ratio * (expected.norm() / found.norm()).item()
    if abs(cosine) < 1 - 1e-6:
        return "wrong sign, roughly" if cosine < -0.9 else f"wrong direction (cosine {cosine:.3g})"
    return f"{'wrong sign' if ratio < 0 else 'wrong size'}, {ratio:.3g} times"


def real(*shape: int, seed: int = 0) -> Tensor:
    """Reproducible standard normal numbers, float64."""
    return torch.randn(shape, generator=generator("verify", seed), dtype=torch.float64)


def slope(equation: Equation, v: Tensor) -> Tensor:
    """The gradient of the sum over points with respect to v, [B, ...]."""
    v = v.detach().clone().requires_grad_()
    return torch.autograd.grad(equation(v).sum(), v)[0]


def equation(algorithm: Algorithm, points: Rows, old: Tensor, reference: Tensor) -> Equation:
    """An algorithm's loss at these points as a function of the policy's velocities."""

    return lambda v: algorithm.loss(answering(v, old, reference), points)[0]


def answering(v: Tensor, old: Tensor, reference: Tensor) -> Models:
    """Models with these velocities, whatever the points; those of teachers are `old` too."""
    return Models(lambda *_: v, lambda *_: old, lambda *_: reference, **{TEACHER: lambda *_: old})


@dataclass(frozen=True)
class Setting:
    """Eight random points of shape [2, 3] and the velocities there."""

    points: Points
    v: Tensor
    old: Tensor
    reference: Tensor

    @classmethod
    def random(cls, scale: float = 1.0, on_policy: bool = False, group: int = 4) -> Setting:
        """A random setting with advantages in [-scale, scale]; on policy, all velocities are equal."""
        v, old, reference, x0, eps, delta = real(6, 8, 2, 3)
        t = torch.tensor([0.05, 0.95, 0.2, 0.8, 1.0, 0.5, 0.35, 0.65], dtype=torch.float64)
        advantage = scale * torch.tensor([-7.0, 5.0, -1.0, 3.0, 7.0, -5.0, 2.0, -3.0], dtype=torch.float64) / 7
        nothing = torch.zeros(8, dtype=torch.long)
        points = Points(
            interpolate(x0, eps, t), t, Condition({"id": nothing}), x0, eps, advantage, torch.arange(8) // group,
            exemplar=nothing.bool(), delta=delta / 3,
        )  # fmt: skip
        return cls(points, old, old, old) if on_policy else cls(points, old + v / 4, old, reference)

    @property
    def u(self) -> Tensor:
        return self.points.eps - self.points.x0

    @property
    def e(self) -> Tensor:
        return self.u - self.old

    @property
    def d(self) -> Tensor:
        return self.v - self.old

    def of(self, algorithm: Algorithm) -> Equation:
        return equation(algorithm, self.points, self.old, self.reference)

    def slope(self, algorithm: Algorithm) -> Tensor:
        return slope(self.of(algorithm), self.v)


def quadratic(s: Setting, outer: Tensor | float, curvature: Tensor | float, pull: Tensor | float) -> Tensor:
    """The gradient of outer (curvature mean(d^2) - 2 pull mean(d e))."""
    one = torch.ones_like(s.points.t)
    d = over(curvature * one, s.d) * s.d - over(pull * one, s.d) * s.e
    return 2 / N * over(outer * one, d) * d


def pull(s: Setting, share: Tensor) -> Tensor:
    """-(2 / N) share e."""
    return -2 / N * over(share, s.e) * s.e


def scaled(s: Setting, factor: float | Tensor) -> Setting:
    """The same setting with scaled advantages."""
    return replace(s, points=replace(s.points, advantage=s.points.advantage * factor))


def differences(law: str, loss: Equation, v: Tensor, step: float = 1e-5) -> Check:
    """Compare autograd with central differences of the summed loss, along eight random directions."""
    gradient, found, expected = slope(loss, v), [], []
    for seed in range(8):
        way = real(*v.shape, seed=seed)
        ahead, behind = (loss(v.detach() + sign * step * way).detach().sum() for sign in (1, -1))
        found.append((gradient * way).sum())
        expected.append((ahead - behind) / (2 * step))
    return compared(law, "autograd", torch.stack(found), torch.stack(expected), tolerance=1e-6)


def rests(law: str, source: str, loss: Equation, best: Tensor, tolerance: float = 1e-10) -> Check:
    """The gradient of every point is 0 at `best`, and the loss rises from there in all of 20 random directions."""
    check = compared(law, source, slope(loss, best), torch.zeros_like(best), tolerance)
    up = []
    for seed in range(20):
        away = real(*best.shape, seed=seed) / 10
        up.append(mean(slope(loss, best + away) * away) > 0)
    share = torch.stack(up).double().mean().item()
    return (
        check
        if share == 1
        else replace(check, error=math.inf, remark=f"not a minimum: the loss rises in {share:.0%} of directions")
    )


def guarded(checks: Iterator[T], law: str, source: str) -> Iterator[T | Check]:
    """Turn an exception into a failed check of `law`, with the exception as its remark."""
    try:
        yield from checks
    except Exception as error:  # a user's class may fail in any way
        yield Check(law, source, math.nan, math.nan, math.inf, 0.0, f"{type(error).__name__}: {error}")
