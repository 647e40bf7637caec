"""CRD: centred reward distillation (2026, arXiv:2603.14128).

Regress the reward implied by the policy on the measured reward, both up to a constant per prompt:

    r_theta = -(m / w - m_old / w_old),  m = ||v - u||^2,  w = mean|v - u| (constants),   y = A / 2c + 1/2
    l = (c / beta) (beta (r_theta - <r_theta>) - (y - <y>))^2 + k_ref ||v - v_ref||^2

with <.> the mean over the prompt's samples. Why this form: the optimum of E[R] - tau KL determines implied rewards up
to a constant per prompt, the normaliser, and centring removes it. <r_theta> may be treated as a constant: the
residuals of a prompt sum to 0, so the gradient is the same.

Limits: if a prompt's rewards are equal, the loss only constrains differences to `old`. That is why it has a
reference term. Its published weight is large, and the reference uses guidance.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torch import Tensor

from ..learning.credit import ZScore, group_mean
from ..learning.points import Points, RenoiseGroups
from ..learning.snapshots import Decay
from ..learning.terms import error_scale, matching, tether
from ..process.flow import wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import finite, not_negative, positive
from .anchored import Anchored


def crd(
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    x0: Tensor,
    eps: Tensor,
    advantage: Tensor,
    group: Tensor,
    beta: float = 1.0,
    clip: float = 5.0,
    k_ref: float = 0.1,
    denominator: bool = True,
    hold: float | None = None,
) -> Tensor:
    """(clip / beta) (beta (r - <r>) - (y - <y>))^2 + k_ref ||v - v_ref||^2, [B].

    Args:
        v, v_old, v_ref, x0, eps: [B, ...]; v_old and v_ref are constants; v_ref may be None.
        advantage, group: [B]; the batch contains all rows of a group.
        denominator: divide each error by its own mean|v - u|, detached, at least 1e-5 (float64).
        hold: share of k_ref at y = 0, rising linearly to all of k_ref at y = 1; None: all of k_ref for any y.
    """
    v, v_old, x0, eps = wide(v), wide(v_old), wide(x0), wide(eps)
    u = eps - x0

    def error(w: Tensor) -> Tensor:
        m = matching(w, x0, eps)
        return m / error_scale(w - u).to(m.dtype) if denominator else m

    implied = error(v_old) - error(v)
    y = (advantage.to(v.dtype) / clip / 2 + 0.5).clamp(0, 1)
    residual = beta * (implied - group_mean(implied.detach(), group)) - (y - group_mean(y, group))
    pull = k_ref if hold is None else k_ref * (hold + y * (1 - hold))
    return clip / beta * residual**2 + tether(v, v_ref, pull)


@dataclass(frozen=True)
class CRD(Anchored):
    """CRD's settings; the defaults are the released ones, scaled down to `scenes`."""

    beta: float = 1.0
    """scale of the implied reward"""
    clip: float = 5.0
    """clip advantages to [-clip, clip]"""
    k_ref: float = 0.1
    """weight of the reference model"""
    hold: float | None = None
    """share of k_ref at the lowest reward (None: all)"""
    reference_guidance: float = 1.0
    """guidance scale of the reference model (1: off)"""
    behaviour: Literal["sampling", "old", "policy"] = "sampling"
    """policy or policy copy that draws the samples"""
    rollout: Sampler = field(default_factory=Sampler)
    credit: ZScore = field(default_factory=ZScore)
    points: RenoiseGroups = field(default_factory=lambda: RenoiseGroups(2, Times("levels")))
    old: Decay = field(default_factory=lambda: Decay(0.999, slope=0.005, first=0.25))
    sampling: Decay = field(default_factory=lambda: Decay(0.999, slope=0.0075, start=75))

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "beta", "clip")
        not_negative(self, "k_ref")
        finite(self, "reference_guidance")
        if self.hold is not None and not 0 <= self.hold <= 1:
            raise ValueError(f"hold, a share of k_ref, must lie in [0, 1], not {self.hold}")

    @property
    def copies(self) -> dict[str, Decay]:
        """The policy copies that the loss and the rollout use, with the EMA decay of each."""
        return {"old": self.old} | ({"sampling": self.sampling} if self.behaviour == "sampling" else {})

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs besides the policy's, with the guidance scale of each."""
        own = {"reference": self.reference_guidance} if self.k_ref > 0 else {}
        return {"old": self.guidance, **own}

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics. The batch must contain whole groups."""
        v_old = models.at("old", points)
        v_ref = self.reference(models, points)
        v = models.at("policy", points)
        loss = crd(
            v, v_old, v_ref, points.x0, points.eps, points.advantage, points.group, self.beta, self.clip, self.k_ref,
            hold=self.hold,
        )  # fmt: skip
        return loss, self.watched(points, v, v_old, v_ref)
