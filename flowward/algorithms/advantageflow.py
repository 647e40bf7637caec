"""AdvantageFlow (Kveton, Rao, Mukherjee, Singh, Lai, 2026, arXiv:2605.26013).

Fit the samples that are better than their group, move away from the worse ones, and stay close to the policy that
drew them. With the clean prediction f = x_t - t v, the loss of a training point is (their Eq. 5):

    l = A ||f - x0||^2 + gamma ||f - f_old||^2 + lambda ||f - f_ref||^2

Why this form: for A < 0 the first term alone has no minimum. The second makes the loss convex if and only if
A + gamma + lambda > 0. It replaces "fit all samples of the old policy" with less variance, because E[x0 | x_t] = f_old
if the old policy is calibrated. For constant gamma and lambda = 0 the population minimiser is the velocity of
q = (1 + A / gamma) pi_old, one Euler step of length 1 / gamma along the Fisher-Rao gradient. gamma = 1 - A gives every
point the same curvature 1 + lambda. Its minimiser v_old + Cov(A, u | x_t) is not the velocity of any single q.

The authors have published no code. An independent one for speech (github.com/spzhang7/GA-AF-FlowSE) agrees with this
equation: its completed square is the same to 2e-16.

Limits: if all A are equal, it becomes plain self-distillation. If every group is solved or hopeless (A = 0), it stops
moving.

`calibration` (not in the paper) fits a part mu of gamma to samples: (A + mu) ||f - x0||^2 + (gamma - mu)
||f - f_old||^2. If the old policy is calibrated, the minimiser is the same, with more variance. Otherwise there is an
error b = E[x0 | x_t] - f_old, and the minimiser contains E[A | x_t] b. If samples are bad, this grows in every
iteration, and Eq. 5 does not correct it. With mu it is (E[A | x_t] + mu) b and is corrected (docs/benchmarks.md).

`signed` (not in the paper) permits losses without a minimum, above all gamma = 0: nothing holds the policy to the old
one, and the old one is not evaluated. In velocity `space` without denominator this is RVM (docs/same.md). The loss then
has a detached target: the same gradient, and the mean square of that gradient's direction as its value.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import reduce
from math import isfinite
from typing import Literal, get_args

import torch
from torch import Tensor

from ..learning.credit import CentredRMS
from ..learning.points import Points, Renoise
from ..learning.snapshots import Decay
from ..learning.terms import detached, error_scale
from ..process.flow import clean, mean, over, wide
from ..process.policy import Models
from ..process.rollout import Sampler
from ..system.errors import finite, not_negative, one_of
from .anchored import Anchored
from .auto_gamma import UNSEEN, AutoGamma, Rule, searched

Space = Literal["x0", "velocity"]


def advantageflow(
    v: Tensor,
    v_old: Tensor | None,
    v_ref: Tensor | None,
    x_t: Tensor,
    t: Tensor,
    x0: Tensor,
    advantage: Tensor,
    gamma: float | Tensor = 1.1,
    lam: float | Tensor = 1e-3,
    denominator: bool = False,
    space: Space = "x0",
    signed: bool = False,
) -> Tensor:
    """l = A ||f - x0||^2 + gamma ||f - f_old||^2 + lambda ||f - f_ref||^2, [B].

    Args:
        v, v_old, v_ref, x_t, x0: [B, ...]. v_old and v_ref are constants; each may be None if its coefficient is 0.
        t, advantage: [B].
        gamma, lam: a number or [B].
        denominator: divide all three terms by mean|f - x0|, detached, at least 1e-5 (float64). The size of the
            gradient then does not depend on a point's noise level. The minimiser of a point stays the same.
        space: the loss in `x0` space is t^2 times that in `velocity` space (inaccurate in float32 below t = 1e-3).
        signed: the same gradient from a detached target, so that the value has a lower bound where A is below 0.

    Raises:
        ValueError: an unknown space.
    """
    if space not in ("x0", "velocity"):
        raise ValueError(f"space must be 'x0' or 'velocity', not '{space}'")
    v, x_t, x0 = wide(v), wide(x_t), wide(x0)
    t, advantage = t.to(x_t.dtype), advantage.to(x_t.dtype)
    f = clean(x_t, t, v)
    pulls: list[tuple[float | Tensor, Tensor]] = [(advantage, f - x0)]
    if v_old is not None:
        pulls.append((gamma, f - clean(x_t, t, wide(v_old))))
    if v_ref is not None:
        pulls.append((lam, f - clean(x_t, t, wide(v_ref))))
    if signed:
        loss = detached(f, reduce(torch.add, [over(weight * torch.ones_like(t), f) * gap for weight, gap in pulls]))
    else:
        loss = reduce(torch.add, [weight * mean(gap**2) for weight, gap in pulls])
    if space == "velocity":
        loss = loss / t.clamp_min(1e-8) ** 2  # stays 0 at t = 0, because every prediction there is x_t
    if denominator:
        loss = loss / error_scale(f - x0).to(loss.dtype)
    return loss


@dataclass(frozen=True)
class AdvantageFlow(Anchored):
    """AdvantageFlow's settings; the defaults are tested (docs/benchmarks.md)."""

    gamma: float | Literal["1-A", "auto"] = "1-A"
    """weight of the old policy: a number (paper: 1.1), 1-A (curvature 1) or auto (chosen by the run)"""
    lam: float = 1e-3
    """weight of the reference model"""
    denominator: bool = True
    """divide the loss of each point by its mean absolute error"""
    calibration: float = 0.0
    """part of gamma fitted to the old policy's samples (ours; for long runs)"""
    space: Space = "x0"
    """space of the errors: in `x0` space the loss of a point is t^2 times that in `velocity` space"""
    signed: bool = False
    """permit losses without a minimum, such as gamma = 0 (docs/same.md)"""
    auto: AutoGamma = field(default_factory=AutoGamma)
    """what gamma auto aims for"""
    behaviour: Literal["old", "policy"] = "old"
    """policy that draws the samples"""
    rollout: Sampler = field(default_factory=Sampler)
    credit: CentredRMS = field(default_factory=CentredRMS)
    points: Renoise = field(default_factory=Renoise)
    old: Decay = field(default_factory=lambda: Decay(0.95, slope=0.005, first=0.5))

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "lam", "calibration")
        one_of("space", self.space, get_args(Space))
        if isinstance(self.gamma, str):
            one_of("gamma", self.gamma, ["1-A", "auto"])
        else:
            finite(self, "gamma")
        if self.gamma == "auto":
            self._refuse_auto()
            return
        if self.auto != AutoGamma():
            raise ValueError(f"auto.ess, auto.nats and auto.budget work only with gamma auto, not with {self.gamma}")
        lowest = getattr(self.credit, "lowest", 0.0)  # optional for a user's own credit
        least = self.curvature(torch.tensor([lowest])).item()
        if not least > 0 and not self.signed:
            bounded = isfinite(lowest)
            mend = f"raise gamma above {-lowest - self.lam:g}, set" if bounded else "set"
            raise ValueError(
                f"this loss has no minimum: at A = {lowest:g} its curvature A + gamma + lam is {least:g}; "
                f"{mend} gamma to 1-A, or {'lower credit.clip' if bounded else 'clip the advantages'} "
                "(signed permits such a loss)"
            )

    def _refuse_auto(self) -> None:
        if self.signed:
            raise ValueError(
                "gamma auto keeps a minimum for every point: leave out signed, or choose a number for gamma"
            )
        if self.auto.budget is not None and self.lam == 0:
            raise ValueError("auto.budget raises lam step by step, and lam is 0: set lam above 0, for example 0.001")

    @property
    def adaptive(self) -> Rule | None:
        """What chooses gamma, if that is auto."""
        return Rule(self.auto, self.lam, self._gain_form) if self.gamma == "auto" else None

    @property
    def held_to(self) -> tuple[str, ...]:
        """The velocities that the loss needs besides the policy's."""
        return ("old",) * self._held + ("reference",) * (self.lam > 0)

    @property
    def _held(self) -> bool:
        return self.gamma != 0 or self.calibration > 0

    @property
    def copies(self) -> dict[str, Decay]:
        """The policy copies that the loss and the rollout use, with the EMA decay of each."""
        return {"old": self.old} if self._held or self.behaviour == "old" else {}

    def _gamma(self, advantage: Tensor) -> Tensor:
        if self.gamma == "1-A":
            return 1 - advantage
        return torch.full_like(advantage, UNSEEN if self.gamma == "auto" else self.gamma)

    def curvature(self, advantage: Tensor) -> Tensor:
        """A + gamma + lambda, [B]: half the second derivative of a point's loss; times gamma, if that is auto."""
        even = self.gamma == "1-A"  # A + (1 - A) would be NaN for A = -inf
        return (torch.ones_like(advantage) if even else advantage + self._gamma(advantage)) + self.lam

    def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics. With gamma auto, that of a run's first iteration."""
        if self.gamma == "auto":
            return self._gain_form(models, points, UNSEEN, self.lam)
        a = points.advantage
        loss, watched, _ = self._weighed(models, points, self._gamma(a), self.lam)
        return loss, watched if self.signed else {**watched, "curvature_min": self.curvature(a)}

    def _asked(self, models: Models, points: Points) -> Models:
        """What the loss takes velocities from."""
        return models

    def _weighed(
        self, models: Models, points: Points, gamma: Tensor, lam: float
    ) -> tuple[Tensor, dict[str, Tensor], list[Tensor | None]]:
        """Losses [B] with gamma [B], metrics, and the velocities of the policy, of `old` and of the reference."""
        models = self._asked(models, points)
        v_old = models.at("old", points) if self._held else None
        v_ref = self.reference(models, points)
        v, a = models.at("policy", points), points.advantage
        fit, hold = a + self.calibration, gamma - self.calibration
        loss = advantageflow(
            v, v_old, v_ref, points.x_t, points.t, points.x0, fit, hold, lam, self.denominator, self.space,
            self.signed,
        )  # fmt: skip
        return loss, self.watched(points, v, v_old, v_ref), [v, v_old, v_ref]

    def _gain_form(self, models: Models, points: Points, gamma: float, lam: float) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point divided by gamma, and metrics with the sums of the line search (auto_gamma.py)."""
        a = points.advantage
        loss, watched, (v, v_old, v_ref) = self._weighed(models, points, torch.full_like(a, gamma), lam)
        assert v is not None and v_old is not None
        scale, curve = points.t**2 if self.space == "x0" else torch.ones_like(a), a + gamma + lam
        if self.denominator:
            scale = scale / error_scale(clean(points.x_t, points.t, v) - points.x0).to(scale.dtype)
        line = searched(points, v, v_old, v_ref, a + self.calibration, curve, lam, scale)
        return loss / gamma, {**watched, **line, "curvature_min": curve}
