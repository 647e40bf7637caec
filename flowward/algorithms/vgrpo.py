"""V-GRPO: a clipped ratio of matching errors in the place of a likelihood (2026, arXiv:2604.23380).

Take the negative flow-matching error of a finished image as its log-likelihood, averaged over M draws of time and
noise that all images of a prompt share, and use PPO's surrogate (after FPO, arXiv:2507.21053). With the clean
prediction f = x_t - t v, w = mean|f - x0| as a constant, and a mean over the draws j of an image:

    s = -(1/M) sum_j ||f - x0||^2 / w,    rho = exp(s - s_old)
    l = max(-A rho, -A clip(rho)) + beta ||f - f_old||^2

Why this form: any sampler will do, as no step needs a density. Shared draws remove the noise that the images of a
prompt have in common. The ratio is of averages: an average of ratios would be too high. On policy rho = 1, and the
gradient is that of AdvantageFlow on policy with its denominator.

`scale` says what the present error is divided by: its `own` w (as published), or that of the `old` policy. With `own`
the value of s is of first power in the error, while its gradient is that of a square, so s moves half as far as the
gradient says: the clip acts at twice the distance. With `old` both agree (docs/same.md).

Limits: with one update per iteration rho is 1 and nothing is clipped. Two draws are too few, four suffice. For A < 0
the surrogate has no minimum within the clip.

What could not be confirmed: the loss is from two notes that quote the authors' code, which we have not read. Learning
rate and group size are not known to us.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, RenoiseShared
from ..learning.snapshots import Decay
from ..learning.terms import clipped_ratio, error_scale, group_sum, log_bounds
from ..process.flow import clean, mean, wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import not_negative, one_of, positive
from .anchored import Anchored
from .policy_gradient import refuse_clip

Scale = Literal["own", "old"]


def log_ratio(
    v: Tensor, v_old: Tensor, x_t: Tensor, t: Tensor, x0: Tensor, image: Tensor, scale: Scale = "own"
) -> Tensor:
    """s - s_old, [B], the same for all points of an image; exactly 0 where v = v_old.

    Args:
        v, v_old, x_t, x0: [B, ...]; v_old is a constant.
        t: [B].
        image: [B], a number for each image; its points are its draws.
        scale: `own` divides each error by its own mean|f - x0|; `old` both by that of v_old.

    Raises:
        ValueError: an unknown scale.
    """
    one_of("scale", scale, get_args(Scale))
    residual, before = (clean(x_t, t, each) - x0 for each in (v, v_old))
    size_old = error_scale(before)
    size = error_scale(residual) if scale == "own" else size_old
    error, error_old = mean(residual**2) / size.to(v.dtype), mean(before**2) / size_old.to(v.dtype)
    return group_sum(error_old - error, image) / group_sum(torch.ones_like(error), image)


def vgrpo(
    v: Tensor,
    v_old: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    x0: Tensor,
    advantage: Tensor,
    image: Tensor,
    clip: float = 6e-3,
    beta: float = 0.0,
    scale: Scale = "own",
    soft_clip: float | None = None,
) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + beta ||f - f_old||^2, [B].

    Args:
        v, v_old, x_t, x0: [B, ...]; v_old is a constant; None: on policy, rho = 1.
        t, advantage: [B]; the points of an image have one advantage.
        image: [B]; the batch contains all points of an image.
        scale: see `log_ratio`.
        soft_clip: replace A by soft_clip tanh(A / soft_clip); None: leave it.
    """
    v, x_t, x0 = wide(v), wide(x_t), wide(x0)
    v_old = v.detach() if v_old is None else wide(v_old)
    a = softened(advantage.to(v.dtype), soft_clip)
    loss = clipped_ratio(log_ratio(v, v_old, x_t, t, x0, image, scale), a, clip)
    if beta:
        loss = loss + beta * mean((clean(x_t, t, v) - clean(x_t, t, v_old)) ** 2)
    return loss


def softened(advantage: Tensor, soft_clip: float | None) -> Tensor:
    """soft_clip tanh(A / soft_clip), a smooth clip to +-soft_clip; A itself without one."""
    return advantage if soft_clip is None else soft_clip * torch.tanh(advantage / soft_clip)


@dataclass(frozen=True)
class VGRPO(Anchored):
    """V-GRPO's settings; the defaults are the published ones as far as they are known, scaled down to `scenes`."""

    clip: float = 6e-3
    """clip the ratio to 1 +/- this (one update per iteration: no effect, the ratio is 1)"""
    beta: float = 0.0
    """weight of the policy that drew the samples, in clean predictions (0: none)"""
    scale: Scale = "own"
    """divide the error by its `own` mean size (published) or by that of the `old` policy"""
    soft_clip: float | None = None
    """replace advantages A by soft_clip tanh(A / soft_clip) (None: off; published: 3 to 5)"""
    rollout: Sampler = field(default_factory=lambda: Sampler(solver="dpm2"))
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RenoiseShared = field(default_factory=lambda: RenoiseShared(4, Times("bins")))
    old: Decay = field(default_factory=lambda: Decay(0.0))

    behaviour = "policy"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("scale", self.scale, get_args(Scale))
        positive(self, "clip", *(["soft_clip"] if self.soft_clip is not None else []))
        not_negative(self, "beta")
        refuse_clip("matching", self.clip)

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's: those of the weights that drew the samples."""
        return ("old",)

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], that of its image, and metrics. The batch must contain whole images."""
        v_old = models.at("old", points)
        v, x_t, t, x0 = models.at("policy", points), points.x_t, points.t, points.x0
        loss = vgrpo(
            v, v_old, x_t, t, x0, points.advantage, points.group, self.clip, self.beta, self.scale, self.soft_clip
        )
        each = log_ratio(wide(v.detach()), wide(v_old), wide(x_t), t, wide(x0), points.group, self.scale)
        low, high = log_bounds(self.clip)
        watched = {
            "log_ratio": each,
            "clipped_up": (each > high) & (points.advantage > 0),
            "clipped_down": (each < low) & (points.advantage < 0),
        }
        found = {name: value.to(each.dtype) for name, value in watched.items()}
        return loss, {**found, **self.watched(points, v, v_old, None)}
