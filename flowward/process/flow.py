"""The convention, stated once, and everything that follows from it.

t = 1 is noise, t = 0 is data:   x_t = (1 - t) x0 + t eps,   u = eps - x0,   a network predicts v = E[u | x_t].
Hence x0 = x_t - t v (the clean prediction, `f` in the papers) and eps = x_t + (1 - t) v.
Times are [B] in [0, 1]; a `mean` runs over all dimensions but the first, so that losses are [B] until the last line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import inf
from typing import Literal, Self, get_args

import torch
from torch import Tensor


def over(a: Tensor, x: Tensor) -> Tensor:
    """a [B] shaped so that it broadcasts over x [B, ...]."""
    return a.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def mean(x: Tensor) -> Tensor:
    """[B, ...] -> [B]."""
    return x.flatten(1).mean(1)


def wide(x: Tensor) -> Tensor:
    """Half precision becomes float32, in which losses and solver states are kept; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = over(t, x0)
    return (1 - t) * x0 + t * eps


def clean(x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """x0 = x_t - t v: what a velocity says the finished sample is."""
    return x_t - over(t, x_t) * v


def noise(x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """eps = x_t + (1 - t) v: what a velocity says the noise was."""
    return x_t + (1 - over(t, x_t)) * v


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise (shift > 1): shift t / (1 + (shift - 1) t) (Esser et al., 2024, arXiv:2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


GridKind = Literal["linear", "sd3"]


def grid(steps: int, shift: float = 3.0, kind: GridKind = "sd3") -> Tensor:
    """The times of a sampler, float64 [steps + 1], decreasing from 1 to 0.

    `linear` shifts `steps + 1` equal intervals. `sd3` is what diffusers' FlowMatchEulerDiscreteScheduler does for
    Stable Diffusion 3: its smallest training level 0.001 is shifted once when the scheduler is made and once more
    with the grid, which leaves 0.0089 before 0 at shift 3, whatever the number of steps.

    Raises:
        ValueError: steps < 1 or > 1000, a shift that is not positive and finite, or an unknown kind.
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"a sampler needs 1 to 1000 steps, not {steps}")
    if not 0 < shift < inf:
        raise ValueError(f"the shift of a time grid must be positive and finite, not {shift}")
    if kind not in get_args(GridKind):
        raise ValueError(f"a time grid is one of {', '.join(get_args(GridKind))}, not {kind}")
    if kind == "linear":
        return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    last = shifted(torch.tensor(0.001, dtype=torch.float64), shift).item()
    levels = shifted(torch.linspace(1, last, steps, dtype=torch.float64), shift)
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class TimeGrid:
    """The times of a sampler, which every way to draw samples begins with."""

    steps: int = 10
    """network evaluations per sample"""
    shift: float = 3.0
    """> 1 spends more steps near noise"""
    grid: GridKind | Literal["model"] = "sd3"
    """how times are spaced: `sd3` is diffusers' grid for Stable Diffusion 3, `model` that of the model's own
    scheduler, which has a shift of its own"""
    own: tuple[float, ...] | None = field(default=None, kw_only=True)
    """steps + 1 times from 1 to 0, in place of a grid"""

    def __post_init__(self) -> None:
        grid(self.steps, self.shift)  # refuses what it cannot do
        if self.known:
            _ = self.times
        elif self.shift not in (1, type(self).shift):
            raise ValueError(
                f"the grid of a model has a shift of its own: name another grid to have one of {self.shift}"
            )

    @property
    def known(self) -> bool:
        """Whether it is clear without a model."""
        return self.own is not None or self.grid != "model"

    @property
    def times(self) -> tuple[float, ...]:
        """[steps + 1], from 1 to 0.

        Raises:
            ValueError: they are none, or not known yet.
        """
        if self.own is not None:
            falls = all(t > s for t, s in pairwise(self.own))
            if len(self.own) != self.steps + 1 or self.own[0] != 1 or self.own[-1] != 0 or not falls:
                raise ValueError(
                    f"a grid of {self.steps} steps is {self.steps + 1} times that fall from 1 to 0, not {self.own}"
                )
            return self.own
        if self.grid == "model":
            raise ValueError("the times of the grid `model` are those of a model: call bound(policy.times) first")
        return tuple(grid(self.steps, self.shift, self.grid).tolist())

    @property
    def levels(self) -> Tensor:
        """[steps] float64: the times but the last."""
        return torch.tensor(self.times[:-1], dtype=torch.float64)

    def bound(self, times: Callable[[int], tuple[float, ...]]) -> Self:
        """With the model's own times (a function of the number of steps) where they were asked for."""
        return self if self.known else replace(self, own=times(self.steps))
