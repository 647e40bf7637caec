"""DiffusionNFT: negative-aware fine-tuning (Zheng et al., 2025, arXiv:2509.16117).

Train the policy to fit good samples, and its reflection at the old policy to fit bad samples:

    v+ = v_old + beta (v - v_old),    v- = v_old - beta (v - v_old),    f+- = x_t - t v+-
    l = (c / beta) [ r ||f+ - x0||^2 / w+ + (1 - r) ||f- - x0||^2 / w- ] + k_ref ||v - v_ref||^2

with r = A / 2c + 1/2 in [0, 1] and w+- = mean|f+- - x0| as constants. Why this form: the second branch gives bad
samples a convex term. Without w, beta = 1 is AdvantageFlow with gamma = 1 - A and A = 2r - 1, and 1 / beta is the gain
of the target. On policy the gradient does not depend on beta.

Limits: if all r are 1/2, it becomes pure self-distillation. As long as `old` equals `policy`, it is plain
advantage-weighted regression divided by each point's own error.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..learning.credit import ZScore
from ..learning.points import Points, Renoise
from ..learning.snapshots import Decay
from ..learning.terms import error_scale, tether
from ..process.flow import mean, over, wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import not_negative, one_of, positive
from .anchored import Anchored

Mode = Literal["all", "positive", "negative", "one-hot", "sign"]

_MODES = {
    "all": lambda a: a,
    "positive": lambda a: a.clamp_min(0),
    "negative": lambda a: a.clamp_max(0),
    "one-hot": lambda a: (a > 0).to(a.dtype),
    "sign": torch.sign,
}


def optimality(advantage: Tensor, clip: float = 5.0, mode: Mode = "all") -> Tensor:
    """r in [0, 1], [B]: advantages clipped to [-clip, clip], transformed by `mode`, and mapped linearly.

    Raises:
        ValueError: an unknown mode.
    """
    one_of("mode", mode, get_args(Mode))
    return (_MODES[mode](advantage.clamp(-clip, clip)) / clip / 2 + 0.5).clamp(0, 1)


def diffusion_nft(
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    x0: Tensor,
    advantage: Tensor,
    beta: float = 1.0,
    clip: float = 5.0,
    k_ref: float = 1e-4,
    mode: Mode = "all",
    denominator: bool = True,
) -> Tensor:
    """(c / beta) [r ||f+ - x0||^2 / w+ + (1 - r) ||f- - x0||^2 / w-] + k_ref ||v - v_ref||^2, [B].

    Args:
        v, v_old, v_ref, x_t, x0: [B, ...]. v_old and v_ref are constants; v_ref may be None.
        t, advantage: [B].
        clip: c; advantages are clipped to [-c, c].
        denominator: divide each branch by its own mean|f - x0|, detached, at least 1e-5 (float64).
    """
    v, v_old, x_t, x0 = wide(v), wide(v_old), wide(x_t), wide(x0)
    r, time = optimality(advantage.to(v.dtype), clip, mode), over(t, v)

    def branch(sign: int) -> Tensor:
        residual = x_t - time * (v_old + sign * beta * (v - v_old)) - x0
        square = mean(residual**2)
        return square / error_scale(residual).to(v.dtype) if denominator else square

    return clip / beta * (r * branch(1) + (1 - r) * branch(-1)) + tether(v, v_ref, k_ref)


@dataclass(frozen=True)
class DiffusionNFT(Anchored):
    """DiffusionNFT's settings; the defaults are the released ones, scaled down to `scenes`."""

    beta: float = 1.0
    """curvature of the loss; 1 / beta is the gain of the target"""
    clip: float = 5.0
    """clip advantages to [-clip, clip]"""
    mode: Mode = "all"
    """use `all` advantages, only `positive` or `negative` ones, `one-hot` (0, 1) or their `sign`"""
    k_ref: float = 1e-4
    """weight of the reference model, in velocity space"""
    behaviour: Literal["old", "policy"] = "old"
    """policy that draws the samples"""
    rollout: Sampler = field(default_factory=lambda: Sampler(solver="dpm2"))
    credit: ZScore = field(default_factory=ZScore)
    points: Renoise = field(default_factory=lambda: Renoise(2, Times("levels")))
    old: Decay = field(default_factory=lambda: Decay(0.5))

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("mode", self.mode, get_args(Mode))
        positive(self, "beta", "clip")
        not_negative(self, "k_ref")

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        v_old = models.at("old", points)
        v_ref = self.reference(models, points)
        v = models.at("policy", points)
        loss = diffusion_nft(
            v, v_old, v_ref, points.x_t, points.t, points.x0, points.advantage, self.beta, self.clip, self.k_ref,
            self.mode,
        )  # fmt: skip
        return loss, self.watched(points, v, v_old, v_ref)
