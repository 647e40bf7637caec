"""DGPO: direct group preference optimisation (Luo et al., 2025, arXiv:2510.08425).

Prefer the good half of a prompt's samples to the bad half. With m = ||v - u||^2, all samples of a prompt at the same
time and noise, advantages that sum to 0 over the prompt's K samples:

    s = sum_i A_i beta (m_i - m_i^ref) / K,    l_i = sigmoid(s) A_i m_i + k_ref ||v - v_ref||^2

with sigmoid(s) a constant. Why this form: it is the gradient of -log sigmoid(-s), over beta; because the advantages sum
to 0, a shift of all implied scores of a prompt, its unknown normaliser, cancels. As in PPO, a sample whose ratio
exp(m_old - m) has left 1 -+ clip in the direction that it is pushed gives no gradient.

It degenerates to advantage-weighted regression for small beta (sigmoid = 1/2), and stands still once s is very low.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, RenoiseGroups
from ..learning.snapshots import Decay
from ..learning.terms import departure, group_sum, matching, tether
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
    """sigmoid(s_group) A m + k_ref ||v - v_ref||^2, [B], sigmoid(s_group) a constant.

    Args:
        v, v_old, v_ref, x0, eps: [B, ...]; v_old and v_ref are constants, without v_old nothing is clipped.
        advantage, group: [B]; rows of one group share time and noise, and all of them are here.
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
    """The algorithm as a value; the defaults are the released setting at the size of `scenes`."""

    beta: float = 100.0
    """scale of the implied scores"""
    clip: float = 0.01
    """of the ratio to `old`"""
    k_ref: float = 0.02
    """weight of the reference model"""
    advantage_clip: float = 5.0
    behaviour: Literal["old", "policy"] = "old"
    """whose samples are scored"""
    rollout: Sampler = field(default_factory=lambda: Sampler(solver="dpm2"))
    credit: ZScore = field(default_factory=ZScore)
    points: RenoiseGroups = field(default_factory=lambda: RenoiseGroups(2, Times("levels", last=7)))
    old: Decay = field(default_factory=lambda: Decay(0.3, slope=0.001))

    def __post_init__(self) -> None:
        positive(self, "beta", "clip", "advantage_clip")
        not_negative(self, "k_ref")

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs beside the policy's."""
        return ("old", "reference")

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and what is worth watching. Whole groups only."""
        v_old, v_ref = models.at("old", points), models.at("reference", points)
        v = models.at("policy", points)
        loss = dgpo(
            v, v_old, v_ref, points.x0, points.eps, points.advantage, points.group, self.beta, self.clip, self.k_ref,
            self.advantage_clip,
        )  # fmt: skip
        return loss, departure(v, v_old, points.x0, points.eps)
