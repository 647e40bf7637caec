"""FlowAWR: advantage-weighted regression of the velocity (Fu et al., 2026, arXiv:2606.30376).

Regress on the old policy's prediction, moved towards each sample in proportion to its advantage. Per point, with
A = w - 1 and w the exponential tilt exp(R / tau) over its group mean:

    target = v_old + A (u - v_old),    l = ||v - target||^2

Why this form: the policy that maximises E[R] - tau KL(. || old) is the tilt w pi_old. Its velocity differs from v_old
by Cov(w, u | x_t) / E[w | x_t]. Regression on the target gives the covariance without the quotient, so it overshoots
at noisy points that already look good. There are three forms. `exact` is AdvantageFlow's quadratic with gamma = 1 and
A = w - 1, and its minimiser is the tilted velocity itself. `released` is the authors' code (x0 space, divided by a
point's own error). `velocity` is the equation of the paper.

The authors' code is public (github.com/Fuzm7/FlowAWR, read at commit 05e993a). Its README points to a licence file,
and it builds on DiffusionNFT's code, whose licence forbids commercial use; nothing of it is copied here. It groups
samples by the text of the prompt, so a prompt that is drawn twice in an iteration makes one larger group;
here two.

Limits: one sample can dominate the tilt (a gain of K - 1, hence the clip). If every group is solved or hopeless
(A = 0), it stops moving.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from ..learning.credit import Softmax
from ..learning.points import Points, Renoise
from ..learning.snapshots import Decay
from ..learning.terms import error_scale, tether
from ..process.flow import clean, mean, over, wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..process.times import Times
from ..system.errors import not_negative, one_of
from .advantageflow import advantageflow
from .anchored import Anchored

Form = Literal["released", "velocity", "exact"]


def flowawr(
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    x0: Tensor,
    advantage: Tensor,
    k_ref: float | Tensor = 1e-4,
    form: Form = "released",
    eps: Tensor | None = None,
) -> Tensor:
    """l = ||v - v_old - A (u - v_old)||^2 + k_ref ||v - v_ref||^2, [B], in one of three forms.

    Args:
        v, v_old, v_ref, x_t, x0: [B, ...]. v_old and v_ref are constants; v_ref may be None.
        t, advantage: [B]; k_ref: a number or [B].
        form: `velocity` is the line above; `released` multiplies its first term by t^2 / max(mean|f - x0|, 1e-5);
            `exact` replaces it by A ||f - x0||^2 + ||f - f_old||^2.
        eps: [B, ...]; without it u is (x_t - x0) / t, which is inaccurate in float32 below t = 1e-3.

    Raises:
        ValueError: an unknown form.
    """
    one_of("form", form, get_args(Form))
    v, v_old, x_t, x0 = wide(v), wide(v_old), wide(x_t), wide(x0)
    t = t.to(x_t.dtype)
    reference = tether(v, v_ref, k_ref)
    if form == "exact":
        return advantageflow(v, v_old, None, x_t, t, x0, advantage, gamma=1.0) + reference
    if form == "velocity":
        u = (x_t - x0) / over(t.clamp_min(1e-8), v) if eps is None else wide(eps) - x0
        return mean((v - v_old - over(advantage, v) * (u - v_old)) ** 2) + reference
    f, f_old = clean(x_t, t, v), clean(x_t, t, v_old)
    target = f_old + over(advantage, v) * (x0 - f_old)
    return mean((f - target) ** 2) / error_scale(f - x0).to(v.dtype) + reference


@dataclass(frozen=True)
class FlowAWR(Anchored):
    """FlowAWR's settings; the defaults are the released ones, scaled down to `scenes`."""

    form: Form = "released"
    """loss as in the authors' code (`released`), the paper (`velocity`), or with an `exact` minimiser"""
    k_ref: float = 1e-4
    """weight of the reference model, in velocity space"""
    behaviour: Literal["old", "policy"] = "old"
    """policy that draws the samples"""
    rollout: Sampler = field(default_factory=lambda: Sampler(solver="dpm2"))
    credit: Softmax = field(default_factory=Softmax)
    points: Renoise = field(default_factory=lambda: Renoise(2, Times("levels")))
    old: Decay = field(default_factory=lambda: Decay(0.5))

    takes_exemplars = True  # GraftOOD's rule: advantage 1, no pull to the reference

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("form", self.form, get_args(Form))
        not_negative(self, "k_ref")
        lowest = getattr(self.credit, "lowest", -1)  # optional for a user's own credit
        if self.form == "exact" and lowest < -1:
            raise ValueError(
                f"form `exact` needs advantages A >= -1, but the credit allows A = {lowest:g}; "
                "set credit.gate to none or form to released"
            )

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics. Exemplars have no reference term."""
        v_old = models.at("old", points)
        v_ref = self.reference(models, points)
        v, a = models.at("policy", points), points.advantage
        k_ref = torch.where(points.exemplar, 0.0, self.k_ref)  # exemplars are not samples of the model
        loss = flowawr(v, v_old, v_ref, points.x_t, points.t, points.x0, a, k_ref, self.form, points.eps)
        flattest = {"curvature_min": 1 + a} if self.form == "exact" else {}
        return loss, {**self.watched(points, v, v_old, v_ref), **flattest}
