"""FDFO: finite-difference flow optimisation (2026, arXiv:2603.12893).

Draw two samples from one start that part through small random pushes. Their reward difference along their difference
estimates the gradient of the reward, and the velocity at every state that either passed is moved so that its end
moves along it. With delta half the difference, A half the reward difference, d = v - v_old the change since the
rollout, push = delta / (mean(delta^2) + 1e-6):

    log rho = -mean(d^2) - 2 mean(d push),    l = -A rho + |A| / (2 c) (rho - 1)^2 + k_ref ||v - v_ref||^2

Why this form: one action is a whole trajectory, so no credit is given to steps; lower v moves the clean sample up,
hence the sign. The square is a soft trust region (its rest lies at rho = 1 + c sign A). v_old was recorded
when the state was visited, so there is no second network.

It degenerates where the two samples of a pair coincide or score the same, and in few dimensions (mean(delta^2) does
not concentrate).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..learning.credit import HalfDifference
from ..learning.points import Points, Visited
from ..learning.snapshots import Decay
from ..learning.terms import tether
from ..process.flow import mean, over, wide
from ..process.laws import Churn
from ..process.policy import Models
from ..process.rollout import Pairs
from ..system.errors import not_negative, positive

FARTHEST = 20.0  # log rho beyond which a point is given up: its square would overflow float32 at 44


def log_ratio(v: Tensor, v_old: Tensor, delta: Tensor) -> Tensor:
    """-||d||^2 - 2 <d, push>, [B]; the same as -||v - v_old + push||^2 + ||push||^2 without their cancellation."""
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
            sample of the pair. Constants but v; v_ref may be None.
        advantage: [B], half the reward difference.
        clip: the width of the trust region.
    """
    log_rho = log_ratio(v, v_old, delta)
    a = advantage.to(log_rho.dtype)
    rho = torch.where(a == 0, 0, log_rho).clamp_max(FARTHEST).exp()  # a pair that scored the same says nothing
    return -a * rho + a.abs() / (2 * clip) * (rho - 1) ** 2 + tether(wide(v), v_ref, k_ref)


@dataclass(frozen=True)
class FDFO:
    """The algorithm as a value; the defaults are the released setting at the size of `scenes`."""

    clip: float = 0.03
    """width of the trust region around ratio 1"""
    k_ref: float = 0.0
    """weight of the reference model"""
    behaviour: Literal["policy"] = "policy"
    """whose samples are scored"""
    rollout: Pairs = field(default_factory=lambda: Pairs(10, 1.0, "linear", Churn(0.01)))
    credit: HalfDifference = field(default_factory=HalfDifference)
    points: Visited = field(default_factory=Visited)

    def __post_init__(self) -> None:
        positive(self, "clip")
        not_negative(self, "k_ref")

    @property
    def guidance(self) -> float:
        """That of the rollout, whose velocities are compared with."""
        return self.rollout.guidance

    @property
    def skips_silent(self) -> bool:
        """Without a pull to the reference a point whose advantage is 0 has no gradient, so it is not evaluated."""
        return self.k_ref == 0

    @property
    def copies(self) -> dict[str, Decay]:
        """None: the velocities of the rollout are recorded."""
        return {}

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs beside the policy's, with the guidance of each."""
        return {"reference": self.guidance} if self.k_ref > 0 else {}

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and what is worth watching."""
        assert points.delta is not None
        v_old = models.at("old", points)
        v_ref = models.at("reference", points) if self.k_ref > 0 else None
        v = models.at("policy", points)
        loss = fdfo(v, v_old, points.delta, points.advantage, self.clip, v_ref, self.k_ref)
        ratio = log_ratio(v.detach(), v_old, points.delta).exp()
        return loss, {
            "distance": mean((wide(v.detach()) - wide(v_old)) ** 2),
            "outside": ((ratio - 1).abs() > self.clip).float(),  # share beyond the trust region
        }
