"""FDFO: finite-difference flow optimisation (2026, arXiv:2603.12893).

Draw two samples from the same initial noise, with small random perturbations. The sample difference times the reward
difference estimates the gradient of the reward. At every visited state the velocity is changed so that the sample moves
along this gradient. With half the sample difference delta, half the reward difference A, the change since the rollout
d = v - v_old, and push = delta / (mean(delta^2) + 1e-6):

    log rho = -mean(d^2) - 2 mean(d push),    l = -A rho + |A| / (2 c) (rho - 1)^2 + k_ref ||v - v_ref||^2

Why this form: one action is a whole trajectory, so steps need no credit of their own. A lower v moves the clean sample
up, hence the sign. The square is a soft trust region with its minimum at rho = 1 + c sign A. v_old was recorded during
the rollout, so no second network is needed.

Limits: a pair gives no gradient if its samples coincide or have equal rewards. It needs many dimensions, or
mean(delta^2) does not concentrate.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..learning.credit import HalfDifference
from ..learning.points import Points, Visited
from ..learning.snapshots import Decay
from ..learning.terms import divergences, tether
from ..process.flow import mean, over, wide
from ..process.laws import Churn
from ..process.policy import Models
from ..process.rollout import Pairs
from ..system.errors import not_negative, positive
from .algorithm import Stale

FARTHEST = 20.0  # largest log rho: at 44, rho^2 would overflow float32


def log_ratio(v: Tensor, v_old: Tensor, delta: Tensor) -> Tensor:
    """-||d||^2 - 2 <d, push>, [B]: equals -||v - v_old + push||^2 + ||push||^2, without its rounding error."""
    d, delta = wide(v) - wide(v_old), wide(delta)
    push = delta / over(mean(delta**2) + 1e-6, delta)
    return -mean(d * d) - 2 * mean(d * push)


def fdfo(
    v: Tensor,
    v_old: Tensor,
    delta: Tensor,
    advantage: Tensor,
    clip: float = 0.03,
    v_ref: Tensor | None = None,
    k_ref: float = 0.0,
) -> Tensor:
    """-A rho + |A| / (2 clip) (rho - 1)^2 + k_ref ||v - v_ref||^2, [B].

    Args:
        v, v_old, delta, v_ref: [B, ...]; v_old is the velocity of the rollout, delta half the difference to the other
            sample of the pair. All but v are constants; v_ref may be None.
        advantage: [B], half the reward difference.
        clip: the width of the trust region.
    """
    log_rho = log_ratio(v, v_old, delta)
    a = advantage.to(log_rho.dtype)
    rho = torch.where(a == 0, 0, log_rho).clamp_max(FARTHEST).exp()  # equal rewards: no gradient
    return -a * rho + a.abs() / (2 * clip) * (rho - 1) ** 2 + tether(wide(v), v_ref, k_ref)


@dataclass(frozen=True)
class FDFO:
    """FDFO's settings; the defaults are the released ones, scaled down to `scenes`."""

    clip: float = 0.03
    """width of the trust region around ratio 1"""
    k_ref: float = 0.0
    """weight of the reference model"""
    behaviour: Literal["policy"] = "policy"
    """policy that draws the samples"""
    rollout: Pairs = field(default_factory=lambda: Pairs(10, 1.0, "linear", Churn(0.01)))
    credit: HalfDifference = field(default_factory=HalfDifference)
    points: Visited = field(default_factory=Visited)

    stale: ClassVar[Stale] = "recorded"

    def __post_init__(self) -> None:
        positive(self, "clip")
        not_negative(self, "k_ref")

    @property
    def guidance(self) -> float:
        """The guidance scale of the rollout: its recorded velocities enter the loss."""
        return self.rollout.guidance

    @property
    def skips_silent(self) -> bool:
        """Whether points with advantage 0 are skipped: without a reference term they have no gradient."""
        return self.k_ref == 0

    @property
    def copies(self) -> dict[str, Decay]:
        """No copies: the velocities of the rollout are recorded."""
        return {}

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs besides the policy's, with the guidance scale of each."""
        return {"reference": self.guidance} if self.k_ref > 0 else {}

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        assert points.delta is not None
        v_old = models.at("old", points)
        v_ref = models.at("reference", points) if self.k_ref > 0 else None
        v = models.at("policy", points)
        loss = fdfo(v, v_old, points.delta, points.advantage, self.clip, v_ref, self.k_ref)
        ratio = log_ratio(v.detach(), v_old, points.delta).exp()
        return loss, {
            "distance": mean((wide(v.detach()) - wide(v_old)) ** 2),
            **divergences(points, v, v_old, v_ref, calibrated=self.guidance == 1),
            "outside": ((ratio - 1).abs() > self.clip).float(),  # share outside the trust region
        }
