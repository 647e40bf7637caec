"""How an input of a network follows the time: found from its values at the times of a scheduler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Clock:
    """a + b u, where u = t / (t + shift (1 - t)) is the time t in [0, 1] before a shift; most networks have shift 1."""

    a: Tensor  # of the shape of the input
    b: Tensor
    shift: float

    def __call__(self, t: Tensor) -> Tensor:
        """The input of one row at t []."""
        u = t if self.shift == 1 else t / (t + self.shift * (1 - t))
        return self.a.to(u) + self.b.to(u) * u

    def __str__(self) -> str:
        a, b = (f"{each.flatten()[self.b.abs().argmax()].item():.6g}" for each in (self.a, self.b))
        u = "t" if self.shift == 1 else f"t / (t + {self.shift:.4g} (1 - t))"
        tokens = f", for each of {self.b.numel()} tokens" if self.b.numel() > 1 else ""
        start = "" if a in ("0", "-0") else f"{a} + "
        return (f"{start}{b} {u}" if b != "1" else f"{start}{u}").replace("+ -1 ", "- ").replace("+ -", "- ") + tokens


def clock(values: Sequence[Tensor], times: Sequence[float], near: float) -> Clock | None:
    """The clock with these values at these falling times (at least 3), to a relative precision; None: there is none."""
    y = torch.stack([each.double().cpu() for each in values])  # [times, ...]
    t = torch.tensor(times, dtype=torch.float64)
    moving = (y[0] - y[-1]).abs().argmax()
    share = ((y[0] - y[1:-1]) / (y[0] - y[-1])).flatten(1)[:, moving]  # of the way, at the times between

    def misses(shift: float) -> float:
        u = t / (t + shift * (1 - t))
        return ((u[0] - u[1:-1]) / (u[0] - u[-1]) - share)[0].item()

    shift = 1.0 if abs(misses(1.0)) < near else _root(misses)
    u = (t / (t + shift * (1 - t))).reshape(-1, *[1] * (y.ndim - 1))
    b = (y[0] - y[-1]) / (u[0] - u[-1])
    a = y[0] - b * u[0]
    largest = y.abs().max()
    if (a + b * u - y).abs().max() > 3 * near * largest:
        return None
    scale = b.abs().max()
    whole = scale.round() if (scale - scale.round()).abs() < 10 * near * scale else scale  # 1000, not 999.998
    b = b * whole / scale
    a = torch.where((a / whole - (a / whole).round()).abs() < 10 * near, (a / whole).round() * whole, a)
    return Clock(a, b, shift)


def _root(misses: object) -> float:
    """By bisection, between a shift of 1/100 and 100."""
    low, high = -math.log(100), math.log(100)
    assert callable(misses)
    sign = misses(math.exp(low)) > 0
    for _ in range(100):
        middle = (low + high) / 2
        if (misses(math.exp(middle)) > 0) == sign:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2)
