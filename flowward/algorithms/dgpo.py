"""DGPO: direct group preference optimisation (Luo et al., 2025, arXiv:2510.08425).

Prefer the better samples of a prompt to the worse ones. With m = ||v - u||^2, the same time and noise for all samples
of a prompt, and advantages that sum to 0 over the prompt's K samples:

    s = sum_i A_i beta (m_i - m_i^ref) / K,    l_i = sigmoid(s) A_i m_i + k_ref ||v - v_ref||^2

with sigmoid(s) treated as a constant. Why this form: the gradient is that of -log sigmoid(-s), divided by beta. The
advantages sum to 0, so a shift of all implied scores of a prompt, its unknown normaliser, cancels. As in PPO, a sample
gives no gradient once its ratio exp(m_old - m) has left 1 -+ clip in the direction in which it is pushed.

Limits: for small beta it becomes advantage-weighted regression (sigmoid = 1/2). It stops learning once s is very low.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, RenoiseGroups
from ..learning.snapshots import Decay
from ..learning.terms import group_sum, matching, tether
from ..process.flow import wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import not_negative, positive
from .anchored import Anchored


def dgpo(
    v: Tensor,
    v_old: Tensor | None,
    v_ref: Tensor,
    x0: Tensor,
    eps: Tensor,
    advantage: Tensor,
    group: Tensor,
    beta: float = 100.0,
    clip: float = 0.01,
    k_ref: float = 0.02,
    advantage_clip: float = 5.0,
) -> Tensor:
    """sigmoid(s_group) A m + k_ref ||v - v_ref||^2, [B], with sigmoid(s_group) as a constant.

    Args:
        v, v_old, v_ref, x0, eps: [B, ...]; v_old and v_ref are constants; without v_old nothing is clipped.
        advantage, group: [B]; rows of a group share time and noise, and the batch contains all of them.
    """
    v, v_ref, x0, eps = wide(v), wide(v_ref), wide(x0), wide(eps)
    a = advantage.to(v.dtype).clamp(-advantage_clip, advantage_clip)
    m = matching(v, x0, eps)
    size = group_sum(torch.ones_like(m), group)
    s = group_sum(a * beta * (m.detach() - matching(v_ref, x0, eps)) / size, group)
    if v_old is not None:
        ratio = (matching(wide(v_old), x0, eps) - m.detach()).exp()
        done = torch.where(a > 0, ratio > 1 + clip, ratio < 1 - clip)
        m = torch.where(done, m.detach(), m)
    return torch.sigmoid(s) * a * m + tether(v, v_ref, k_ref)


@dataclass(frozen=True)
class DGPO(Anchored):
    """DGPO's settings; the defaults are the released ones, scaled down to `scenes`."""

    beta: float = 100.0
    """scale of the implied scores"""
    clip: float = 0.01
    """clip the ratio to `old` to 1 +- clip"""
    k_ref: float = 0.02
    """weight of the reference model"""
    advantage_clip: float = 5.0
    """clip advantages to [-advantage_clip, advantage_clip]"""
    behaviour: Literal["old", "policy"] = "old"
    """policy that draws the samples"""
    rollout: Sampler = field(default_factory=lambda: Sampler(solver="dpm2"))
    credit: ZScore = field(default_factory=ZScore)
    points: RenoiseGroups = field(default_factory=lambda: RenoiseGroups(2, Times("levels", last=7)))
    old: Decay = field(default_factory=lambda: Decay(0.3, slope=0.001))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta", "clip", "advantage_clip")
        not_negative(self, "k_ref")

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's."""
        return ("old", "reference")

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics. The batch must contain whole groups."""
        v_old, v_ref = models.at("old", points), models.at("reference", points)
        v = models.at("policy", points)
        loss = dgpo(
            v, v_old, v_ref, points.x0, points.eps, points.advantage, points.group, self.beta, self.clip, self.k_ref,
            self.advantage_clip,
        )  # fmt: skip
        return loss, self.watched(points, v, v_old, v_ref)
