"""AWM: advantage-weighted matching (Xue et al., 2025, arXiv:2509.25050).

A policy gradient that uses the flow-matching error as log-likelihood of a finished sample. With err = ||v - u||^2:

    log p = -t ((err + 1e-10)^p - (1e-10)^p) / p,    rho = exp(log p - log p_old)
    l = max(-A rho, -A clip(rho)) + k_old ||v - v_ema||^2 + k_ref ||v - v_ref||^2

Why this form: reverse-process transitions match the score of a noisy target. Matching the score of the clean target
has the same expected direction and less variance. On policy the value of rho is 1 and the gradient is -A grad log p,
without a second forward pass. For A < 0 the first term alone is concave; the penalty towards the EMA policy makes the
loss convex. `uniform` weighting with k_old is AdvantageFlow with gamma = k_old in velocity space.

Limits: it needs many dimensions (the power of err concentrates only for large images) and the penalty.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, Renoise
from ..learning.snapshots import Decay
from ..learning.terms import clipped_ratio, matching, tether
from ..process.flow import wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import not_negative, one_of, positive
from .anchored import Anchored

Weighting = Literal["uniform", "t", "t2", "huber", "ghuber"]


def log_likelihood(
    v: Tensor, x0: Tensor, eps: Tensor, t: Tensor, weighting: Weighting = "ghuber", power: float = 0.25
) -> Tensor:
    """AWM's replacement for log p(x0), float64 [B]: -err, -t err, -t^2 err, or a power of err (`huber`: 1/2).

    Raises:
        ValueError: an unknown weighting.
    """
    one_of("weighting", weighting, get_args(Weighting))
    err = matching(v.double(), x0.double(), eps.double())
    if weighting == "uniform":
        return -err
    t = t.double()
    if weighting in ("t", "t2"):
        return -(t if weighting == "t" else t**2) * err
    p = power if weighting == "ghuber" else 0.5
    # both published forms: ghuber divides by p, huber does not
    return -t * ((err + 1e-10) ** p - 1e-10**p) / (p if weighting == "ghuber" else 1.0)


def awm(
    v: Tensor,
    v_old: Tensor | None,
    v_ref: Tensor | None,
    eps: Tensor,
    t: Tensor,
    x0: Tensor,
    advantage: Tensor,
    power: float = 0.25,
    k_old: float = 1.0,
    k_ref: float = 1e-3,
    clip: float = 1.0,
    advantage_clip: float = 5.0,
    weighting: Weighting = "ghuber",
    logp_old: Tensor | None = None,
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 -+ clip)) + k_old ||v - v_old||^2 + k_ref ||v - v_ref||^2, [B].

    Args:
        v, v_old, v_ref, eps, x0: [B, ...]; v_old (the EMA policy) and v_ref are constants and may be None.
        t, advantage: [B]; advantages are clipped to +-advantage_clip and divided by it.
        logp_old: [B], `log_likelihood` under the weights that drew the sample; None: on policy, rho = 1.
    """
    v, x0, eps = wide(v), wide(x0), wide(eps)
    a = advantage.clamp(-advantage_clip, advantage_clip).to(v.dtype) / advantage_clip
    logp = log_likelihood(v, x0, eps, t, weighting, power)
    log_ratio = (logp - (logp.detach() if logp_old is None else logp_old)).to(v.dtype)
    return clipped_ratio(log_ratio, a, clip) + tether(v, v_old, k_old) + tether(v, v_ref, k_ref)


@dataclass(frozen=True)
class AWM(Anchored):
    """AWM's settings; the defaults are the released ones, scaled down to `scenes`."""

    weighting: Weighting = "ghuber"
    """error in the log-likelihood: `uniform`, times t or t2, or a power (`huber`: 1/2)"""
    power: float = 0.25
    """power of the error, for `ghuber`"""
    clip: float = 1.0
    """clip the ratio to 1 +- clip (behaviour `policy`: no effect, the ratio is 1)"""
    advantage_clip: float = 5.0
    """clip advantages to [-advantage_clip, advantage_clip], then divide by it"""
    k_old: float = 1.0
    """weight of the EMA policy"""
    k_ref: float = 1e-3
    """weight of the reference model"""
    behaviour: Literal["policy", "old"] = "policy"
    """policy that draws the samples: `policy`, or `old` (EMA; corrected by the ratio)"""
    rollout: Sampler = field(default_factory=lambda: Sampler(solver="sa"))
    credit: ZScore = field(default_factory=ZScore)
    points: Renoise = field(default_factory=lambda: Renoise(2, Times("bins", first=1, last=9)))
    old: Decay = field(default_factory=lambda: Decay(0.3, slope=0.001))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("weighting", self.weighting, get_args(Weighting))
        positive(self, "power", "clip", "advantage_clip")
        not_negative(self, "k_old", "k_ref")

    @property
    def _old(self) -> bool:
        return self.k_old > 0 or self.behaviour == "old"

    @property
    def copies(self) -> dict[str, Decay]:
        """The policy copies that the loss and the rollout use, with the EMA decay of each."""
        return {"old": self.old} if self._old else {}

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's."""
        return ("old",) * self._old + ("reference",) * (self.k_ref > 0)

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        v_old = models.at("old", points) if self._old else None
        v_ref = self.reference(models, points)
        v, x0, eps, t = models.at("policy", points), points.x0, points.eps, points.t
        logp_old = None
        if self.behaviour == "old" and v_old is not None:
            logp_old = log_likelihood(v_old, x0, eps, t, self.weighting, self.power)
        loss = awm(
            v, v_old, v_ref, eps, t, x0, points.advantage, self.power, self.k_old, self.k_ref, self.clip,
            self.advantage_clip, self.weighting, logp_old,
        )  # fmt: skip
        return loss, self.watched(points, v, v_old, v_ref)
