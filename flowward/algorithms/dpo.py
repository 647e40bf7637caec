"""Diffusion-DPO, online (Wallace et al., 2023, arXiv:2311.12908).

Prefer the best sample (w) of a prompt to the worst (l), with the same time and noise for both. With m = ||v - u||^2:

    l = -log sigmoid( -(beta / 2) [(m_w - m_w^old) - (m_l - m_l^old)] )

Why this form: it is the negative log-likelihood of the preference, under the rewards that the policy implies relative
to a fixed model. Here this model is a copy of the policy. It is updated from time to time (online DPO), or never if
`old.every` exceeds the length of the run.

Limits: the loss can also decrease by making the worse sample ever worse, so the learning rate must be small. Pairs
with equal rewards give no gradient.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor
from torch.nn.functional import logsigmoid

from ..learning.credit import BestAndWorst
from ..learning.points import Points, RenoisePairs
from ..learning.snapshots import Decay
from ..learning.terms import group_sum, matching
from ..process.flow import wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import positive
from .anchored import Anchored


def dpo(
    v: Tensor, v_ref: Tensor, x0: Tensor, eps: Tensor, advantage: Tensor, group: Tensor, beta: float = 100.0
) -> Tensor:
    """-log sigmoid(-(beta / 2) sum over the pair of sign(A) (m - m_ref)), [B]: each row has the loss of its pair.

    Args:
        v, v_ref, x0, eps: [B, ...]; v_ref is a constant.
        advantage, group: [B]; a group is a pair, and the batch contains both rows: the better with A > 0, the worse
            with A < 0.
    """
    v, v_ref, x0, eps = wide(v), wide(v_ref), wide(x0), wide(eps)
    worse = advantage.to(v.dtype).sign() * (matching(v, x0, eps) - matching(v_ref, x0, eps))
    return -logsigmoid(-beta / 2 * group_sum(worse, group))


@dataclass(frozen=True)
class DPO(Anchored):
    """Online DPO's settings; the defaults are the released ones, scaled down to `scenes`."""

    beta: float = 100.0
    """strength of the regularisation towards `old`"""
    behaviour: Literal["policy", "old"] = "policy"
    """policy that draws the samples"""
    rollout: Sampler = field(default_factory=Sampler)
    credit: BestAndWorst = field(default_factory=BestAndWorst)
    points: RenoisePairs = field(default_factory=lambda: RenoisePairs(12, Times("logit-normal")))
    old: Decay = field(default_factory=lambda: Decay(0.0, every=40))

    k_ref = 0.0  # no reference model
    stale = "free"  # a preference holds whatever drew the pair

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta")

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics. The batch must contain whole pairs."""
        v_old, v = models.at("old", points), models.at("policy", points)
        loss = dpo(v, v_old, points.x0, points.eps, points.advantage, points.group, self.beta)
        return loss, self.watched(points, v, v_old, None)
