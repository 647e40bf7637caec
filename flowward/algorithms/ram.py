"""RAM: adjoint matching with rewards that need no gradient (2026, arXiv:2605.10759).

Regress on the reference model's velocity, moved towards each sample in proportion to its advantage. Per point, with
u = eps - x0 and a large m (the paper's Eq. 17, and the released code):

    l = ||v - sg[v_ref + m A (u - v)]||^2          residual: policy
    l = ||v -   [v_ref + m A (u - v_old)]||^2      residual: old

Why this form: E[R] - tau KL(. || reference) is a problem of control. With memoryless noise, adjoint matching turns the
gradient of the reward into R (u - v), so a reward needs no gradient. The anchor is fixed: the policy rests where
v - v_ref = m Cov(A, u | x_t) under its own samples, an implicit step, where AdvantageFlow and its kin take explicit
steps from an anchor that follows. For a Gaussian with a linear reward this is the exact tilt. Otherwise it falls short
of it (docs/same.md).

Here the loss is divided by 2 m, so that its gradient is A (v - u) + (v - v_ref) / m over N, RVM's with beta = 1 / m. As
published it is of order m^2, and a clip of the gradient would have no meaning. AdamW does not see the difference.

Limits: until rewards saturate, the pull 1 / m to the reference is weak, and this is advantage-weighted matching. A
large advantage is not clipped. Two velocities with the same samples are not the same to RAM: it pulls a field that
rotates samples back to the reference.

What could not be confirmed: both losses are from notes and ports by others, which agree; we have not read the paper's
section that restores the term that this form drops, nor the authors' script.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, Renoise
from ..learning.snapshots import Decay
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import one_of, positive
from .anchored import Anchored
from .rvm import matched

Residual = Literal["policy", "old"]


def ram(
    v: Tensor,
    v_old: Tensor | None,
    v_ref: Tensor,
    x0: Tensor,
    eps: Tensor,
    advantage: Tensor,
    m: float = 100.0,
    residual: Residual = "policy",
) -> Tensor:
    """A loss with the gradient of ||v - sg[v_ref + m A (u - w)]||^2 / 2m, [B]; w is v or, for residual `old`, v_old.

    Args:
        v, v_old, v_ref, x0, eps: [B, ...]. v_old and v_ref are constants; v_old may be None for residual `policy`.
        advantage: [B].
        m: gain of the target; 1 / m is the weight of the reference.

    Raises:
        ValueError: an unknown residual, or no v_old for residual `old`.
    """
    one_of("residual", residual, get_args(Residual))
    if residual == "policy":
        return matched(v, v, v_ref, x0, eps, advantage, 1 / m)
    if v_old is None:
        raise ValueError("residual `old` needs the velocity of the old policy")
    return matched(v, v_old, v_ref, x0, eps, advantage, 1 / m)


@dataclass(frozen=True)
class RAM(Anchored):
    """RAM's settings; the defaults are those of the paper, scaled down to `scenes`."""

    m: float = 100.0
    """gain of the target, in advantages; 1 / m is the weight of the reference model"""
    residual: Residual = "policy"
    """residual in the target: of the `policy` (Eq. 17) or of an `old` copy, which then draws the samples (released)"""
    rollout: Sampler = field(default_factory=Sampler)
    credit: ZScore = field(default_factory=ZScore)
    points: Renoise = field(default_factory=lambda: Renoise(2, Times("power")))
    old: Decay = field(default_factory=lambda: Decay(0.9, slope=0.01))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("residual", self.residual, get_args(Residual))
        positive(self, "m")

    @property
    def behaviour(self) -> str:
        """The weights that draw the samples: those of the residual."""
        return self.residual

    @property
    def copies(self) -> dict[str, Decay]:
        """The policy copies that the loss and the rollout use, with the EMA decay of each."""
        return {"old": self.old} if self.residual == "old" else {}

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's."""
        return (*self.copies, "reference")

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        v_old = models.at("old", points) if self.residual == "old" else None
        v_ref = models.at("reference", points)
        v = models.at("policy", points)
        loss = ram(v, v_old, v_ref, points.x0, points.eps, points.advantage, self.m, self.residual)
        return loss, self.watched(points, v, v_old, v_ref)
