"""The flow-matching convention of this library, and the formulas that follow from it.

t = 1 is noise, t = 0 is data:   x_t = (1 - t) x0 + t eps,   u = eps - x0,   a network predicts v = E[u | x_t].
Hence x0 = x_t - t v (the clean prediction, `f` in the papers) and eps = x_t + (1 - t) v.
Times are [B] in [0, 1]. `mean` averages over all dimensions but the first, so losses stay [B].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Self, get_args

import torch
from torch import Tensor

from ..system.errors import one_of


def over(a: Tensor, x: Tensor) -> Tensor:
    """Reshape a [B] so that it broadcasts over x [B, ...]."""
    return a.to(x.dtype).view(-1, *[1] * (x.ndim - 1))


def mean(x: Tensor) -> Tensor:
    """Mean over all dimensions but the first, [B, ...] -> [B]."""
    return x.flatten(1).mean(1)


def wide(x: Tensor) -> Tensor:
    """Convert half precision to float32, used for losses and solver states; float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def interpolate(x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) x0 + t eps."""
    t = over(t, x0)
    return (1 - t) * x0 + t * eps


def clean(x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """x0 = x_t - t v: the clean sample that a velocity predicts."""
    return x_t - over(t, x_t) * v


def noise(x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
    """eps = x_t + (1 - t) v: the noise that a velocity predicts."""
    return x_t + (1 - over(t, x_t)) * v


def shifted(t: Tensor, shift: float) -> Tensor:
    """Move times towards noise (shift > 1): shift t / (1 + (shift - 1) t) (Esser et al., 2024, arXiv:2403.03206)."""
    return shift * t / (1 + (shift - 1) * t)


def refuse_shift(shift: float, of: str) -> None:
    """Raise ValueError for a shift that would leave no times between 0 and 1."""
    if not 1e-3 <= shift <= 1e3:
        raise ValueError(f"the shift of {of} must lie between 0.001 and 1000, not {shift:g}")


GridKind = Literal["linear", "sd3"]


def grid(steps: int, shift: float = 3.0, kind: GridKind = "sd3") -> Tensor:
    """Return the times of a sampler, float64 [steps + 1], decreasing from 1 to 0.

    `linear` shifts `steps + 1` equally spaced times. `sd3` is the grid of diffusers' FlowMatchEulerDiscreteScheduler
    for Stable Diffusion 3. That scheduler shifts its smallest training level, 0.001, twice: when it is created and
    again with the grid. At shift 3 the last time before 0 is therefore 0.0089, whatever the number of steps.

    Raises:
        ValueError: steps < 1 or > 1000, a shift outside [0.001, 1000], or an unknown kind.
    """
    if not 1 <= steps <= 1000:
        raise ValueError(f"a sampler needs 1 to 1000 steps, not {steps}")
    refuse_shift(shift, "a time grid")
    one_of("time grid", kind, get_args(GridKind))
    if kind == "linear":
        return shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    last = shifted(torch.tensor(0.001, dtype=torch.float64), shift).item()
    levels = shifted(torch.linspace(1, last, steps, dtype=torch.float64), shift)
    return torch.cat([levels, torch.zeros(1, dtype=torch.float64)])


@dataclass(frozen=True)
class TimeGrid:
    """The time grid of a sampler. All rollouts share these settings."""

    steps: int = 10
    """sampling steps, one network evaluation each"""
    shift: float = 3.0
    """spend more steps near noise (> 1) or near data (< 1)"""
    grid: GridKind | Literal["model"] = "sd3"
    """spacing of times: `linear`, `sd3` (diffusers' grid for SD3) or `model` (the model's scheduler)"""
    own: tuple[float, ...] | None = field(default=None, kw_only=True)
    """use these steps + 1 times, from 1 to 0, instead of a grid"""

    def __post_init__(self) -> None:
        grid(self.steps, self.shift)  # raises on invalid settings
        if self.known:
            _ = self.times
        elif self.shift not in (1, type(self).shift):
            raise ValueError(
                f"grid `model` brings its own shift; to use shift {self.shift}, choose grid `sd3` or `linear`"
            )

    @property
    def known(self) -> bool:
        """Whether the times are known without a model."""
        return self.own is not None or self.grid != "model"

    @property
    def times(self) -> tuple[float, ...]:
        """[steps + 1], from 1 to 0.

        Raises:
            ValueError: `own` does not decrease from 1 to 0, or the grid is `model` and not bound yet.
        """
        if self.own is not None:
            falls = all(t > s for t, s in pairwise(self.own))
            if len(self.own) != self.steps + 1 or self.own[0] != 1 or self.own[-1] != 0 or not falls:
                raise ValueError(
                    f"{self.steps} steps need {self.steps + 1} times that decrease from 1 to 0, not {self.own}"
                )
            return self.own
        if self.grid == "model":
            raise ValueError("grid `model` reads its times from a model: call bound(policy.times) first")
        return tuple(grid(self.steps, self.shift, self.grid).tolist())

    @property
    def levels(self) -> Tensor:
        """[steps] float64: all times but the last; the network is evaluated here."""
        return torch.tensor(self.times[:-1], dtype=torch.float64)

    def bound(self, times: Callable[[int], tuple[float, ...]]) -> Self:
        """Fill in the model's own times (a function of the number of steps) if the grid is `model`."""
        return self if self.known else replace(self, own=times(self.steps))
