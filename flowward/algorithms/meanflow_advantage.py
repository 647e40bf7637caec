"""MeanFlowAdvantage: AdvantageFlow for few-step models, which jump (2026, arXiv:2609.37670).

A model with two times has the average velocity U(x_t, s, t) of the jump from t to s. MeanFlow's identity (Geng et al.,
2025, arXiv:2505.13447, Eq. 6) makes a velocity at t of it, v = U + (t - s) dU, where dU is the slope of U along the
trajectory. So the loss of a velocity becomes a loss of jumps. With u = eps - x0, for policy, old and reference alike:

    V = U + (t - s) sg[dhat],      F = x_t - t V
    l = [A ||F - x0||^2 + gamma ||F - F_old||^2 + lambda ||F - F_ref||^2] / mean|F - x0|

dhat is the central difference of U_old along the line from x0 to eps, over 0.005 to each side, without a gradient. All
three share it, so V - V_old = U - U_old, and the loss is t^2 [A ||U - ubar||^2 + ...] with ubar = u - (t - s) dhat.

Why this form: re-noised samples say something of the velocity at t only, and a few-step sampler never asks for it. At
s = t it is AdvantageFlow. Training s = t alone leaves the jumps behind, so half of the jumps end elsewhere.

Limits: only for s = t is a round exact. There U moves by C = Cov(A, u | x_t) / (gamma + E[A | x_t]), as the velocity of
AdvantageFlow does, and for jumps by (dx_s / dx_t) C, because dhat contains u, which goes with A. The average velocity
of the better policy moves otherwise. Only a fresh dhat repairs it, so `old` has to follow quickly. `semigroup` says how
far a jump to data is from two half jumps: watch that it does not grow. The slope of long jumps is noisy, since dhat is
along u and not along v; so no jump here is longer than the sampler's longest step (`points.times.longest`).

What could not be confirmed: the loss is from two summaries of the paper, whose algebra we checked; we have not seen the
authors' code. The step of dhat and the shares of jumps are those of MeanFlowNFT's code (arXiv:2607.15273).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..learning.jumps import RenoiseJumps
from ..learning.points import Points
from ..learning.rows import around
from ..learning.snapshots import Decay
from ..process.flow import mean, over
from ..process.policy import UNTIL, Condition, Evaluable, Models, Velocity
from ..process.rollout import Sampler
from .advantageflow import AdvantageFlow

PLACES = ("ahead", "behind")  # of a point, where `old` is evaluated for dhat


def drift(ahead: Tensor, behind: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """(t - s) dhat, [B, ...]: what an average velocity lacks of the velocity at t. Exactly 0 where s = t.

    Args:
        ahead, behind: [B, ...], the average velocities at the two times of `around(t)`.
        t, s: [B], start and end of the jumps.
    """
    low, high = around(t)
    return over((t - s) / (high - low), ahead) * (ahead - behind).detach()


class Instantaneous(Models):
    """The velocities at t that follow from average velocities, with a `drift` [B, ...] that all share."""

    def __init__(self, models: Models, drift: Tensor):
        super().__init__(**models.velocities)
        self.drift = drift

    def at(self, name: str, points: Evaluable) -> Tensor:
        """V [B, ...]."""
        return super().at(name, points) + self.drift


@torch.no_grad()
def semigroup(velocity: Velocity, x: Tensor, condition: Condition) -> Tensor:
    """RMS distance between a jump from noise x [B, ...] to data and two jumps of half the length, [B].

    It is 0 for an exact flow map. Three evaluations per row.
    """
    one, half, zero = (torch.full((len(x),), time, device=x.device) for time in (1.0, 0.5, 0.0))
    whole = x - velocity(x, one, condition.until(zero))
    middle = x - 0.5 * velocity(x, one, condition.until(half))
    return mean((whole - (middle - 0.5 * velocity(middle, half, condition.until(zero)))) ** 2).sqrt()


@dataclass(frozen=True)
class MeanFlowAdvantage(AdvantageFlow):
    """MeanFlowAdvantage's settings; the defaults are the published ones, scaled down to `scenes-4step`."""

    gamma: float | Literal["1-A", "auto"] = 1.1
    """weight of the old policy: a number (paper: 1.1), 1-A (curvature 1) or auto (chosen by the run)"""
    rollout: Sampler = field(default_factory=lambda: Sampler(steps=4, solver="jump"))
    points: RenoiseJumps = field(default_factory=RenoiseJumps)  # type: ignore[assignment]
    old: Decay = field(default_factory=lambda: Decay(0.5, slope=0.001))

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's: also those of `old` on both sides of a point."""
        return (*super().held_to, *(f"old {place}" for place in PLACES))

    @property
    def copies(self) -> dict[str, Decay]:
        """The policy copies that the loss and the rollout use, with the EMA decay of each."""
        return {"old": self.old}

    def _asked(self, models: Models, points: Points) -> Models:
        """The velocities that follow from average ones, all with the same drift."""
        ahead, behind = (models.at(f"old {place}", points) for place in PLACES)
        s = points.condition.tensors.get(UNTIL, points.t)
        return Instantaneous(models, drift(ahead, behind, points.t, s))

    def measured(self, velocity: Velocity, x: Tensor, condition: Condition) -> dict[str, float]:
        """What an evaluation measures of the model beside its images, from noise x [B, ...]."""
        return {"semigroup": semigroup(velocity, x, condition).mean().item()}
