"""Diffusion-DPO, online (Wallace et al., 2023, arXiv:2311.12908).

Prefer the best sample of a prompt to the worst, both noised at the same time with the same noise. m = ||v - u||^2:

    l = -log sigmoid( -(beta / 2) [(m_w - m_w^old) - (m_l - m_l^old)] )

Why this form: it is the likelihood of a preference under the rewards that the policy implies against a fixed model,
here a copy of the policy that is renewed now and then (online DPO) or never (`old.every` beyond the end of the run).

It degenerates where it can lower both errors' difference by making the worse sample worse without end, so the learning
rate is small; pairs with equal rewards give nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..learning.credit import BestAndWorst
from ..learning.points import Points, RenoisePairs
from ..learning.snapshots import Decay
from ..learning.terms import departure, group_sum, matching
from ..process.flow import wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import positive
from .anchored import Anchored


def dpo(
    v: Tensor, v_ref: Tensor, x0: Tensor, eps: Tensor, advantage: Tensor, group: Tensor, beta: float = 100.0
) -> Tensor:
    """-log sigmoid(-(beta / 2) sum over the pair of sign(A) (m - m_ref)), [B]: each row has its pair's loss.

    Args:
        v, v_ref, x0, eps: [B, ...]; v_ref is a constant.
        advantage, group: [B]; a group is a pair, and both rows are here. Its better row has A > 0, its worse A < 0.
    """
    v, v_ref, x0, eps = wide(v), wide(v_ref), wide(x0), wide(eps)
    worse = advantage.to(v.dtype).sign() * (matching(v, x0, eps) - matching(v_ref, x0, eps))
    return -logsigmoid(-beta / 2 * group_sum(worse, group))


@dataclass(frozen=True)
class DPO(Anchored):
    """The algorithm as a value; the defaults are the released setting at the size of `scenes`."""

    beta: float = 100.0
    """strength of the pull to `old`"""
    behaviour: Literal["policy", "old"] = "policy"
    """whose samples are compared"""
    rollout: Sampler = field(default_factory=Sampler)
    credit: BestAndWorst = field(default_factory=BestAndWorst)
    points: RenoisePairs = field(default_factory=lambda: RenoisePairs(12, Times("logit-normal")))
    old: Decay = field(default_factory=lambda: Decay(0.0, every=40))

    k_ref = 0.0  # no reference model

    def __post_init__(self) -> None:
        positive(self, "beta")

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and what is worth watching. Whole pairs only."""
        v_old, v = models.at("old", points), models.at("policy", points)
        loss = dpo(v, v_old, points.x0, points.eps, points.advantage, points.group, self.beta)
        return loss, departure(v, v_old, points.x0, points.eps)
