"""SRPO: the gradient of a reward after one small step from a re-noised sample (2025, arXiv:2509.06942).

A finished sample x0 is noised to t with a known eps. One small step of the policy leads from x_t to t'. What is then
taken away is the known noise, not a predicted one:

    x_t' = x_t + (t' - t) v,   x0rec = (x_t' - t' eps) / (1 - t') = x0 + (t' - t) / (1 - t') (v - u),   u = eps - x0
    l = -R(x0rec) for t' < t,   l = +R(x0rec) for t' > t

Why this form: x0rec stays close to the sample at any t, so the reward sees a clean picture even of noisy times, and one
evaluation of the network is differentiated: dR/dv = (t' - t) / (1 - t') grad R. A step towards noise moves the picture
against the velocity, hence the sign. With a contrast k the score is (1 + k) r(x, good words + prompt) - r(x, bad words
+ prompt), for rewards that read free text: what both words have in common is subtracted.

Limits: those of DRaFT. Early times distort the structure, late ones the colours.

What could not be confirmed: how the released code chooses t and t' exactly. The size of the step and the range of times
are ours.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..learning.trails import Nudges, SmallSteps
from ..process.flow import over, wide
from ..process.policy import PLAIN, Models, Wording
from ..process.rollout import Sampler
from ..system.errors import not_negative
from .ascent import Differentiating, ascent


def recovered(x_t: Tensor, t: Tensor, until: Tensor, v: Tensor, eps: Tensor) -> Tensor:
    """x0rec [B, ...]: one step from t to `until` [B], and the known noise taken away."""
    x = wide(x_t) + over(until - t, x_t) * wide(v)
    return (x - over(until, x) * eps) / (1 - over(until, x))


@dataclass(frozen=True)
class SRPO(Differentiating):
    """SRPO's settings, scaled to `scenes`."""

    contrast_down: float | None = None
    """k of the contrast for steps towards data (none: the plain reward)"""
    contrast_up: float | None = None
    """k of the contrast for steps towards noise (none: the plain reward)"""
    good: str = "Realistic. "
    """words before the prompt that the contrast adds"""
    bad: str = "Painting. "
    """words before the prompt that the contrast subtracts"""
    rollout: Sampler = field(default_factory=Sampler)
    points: SmallSteps = field(default_factory=SmallSteps)

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, *(name for name in ("contrast_down", "contrast_up") if getattr(self, name) is not None))
        if self._contrasts and self.good == self.bad:
            raise ValueError(f"a contrast needs two different texts, but good and bad are both '{self.good}'")

    @property
    def words(self) -> tuple[str, ...]:
        """Texts that are put before prompts; the reward must be able to read them there."""
        return (self.good, self.bad) if self._contrasts else ()

    @property
    def _contrasts(self) -> bool:
        return self.contrast_down is not None or self.contrast_up is not None

    def wording(self, up: Tensor) -> Wording:
        """The weight of each text before the prompt in the score of each row; `up` is bool [B]."""
        if not self._contrasts:
            return PLAIN
        plain, good, bad = (torch.zeros(len(up), device=up.device) for _ in range(3))
        for rows, k in ((up, self.contrast_up), (~up, self.contrast_down)):
            if k is None:
                plain[rows] = 1
            else:
                good[rows], bad[rows] = 1 + k, -1
        found: dict[str, Tensor] = {}
        for text, weight in (("", plain), (self.good, good), (self.bad, bad)):
            found[text] = found[text] + weight if text in found else weight
        return {text: weight for text, weight in found.items() if weight.any()}

    def loss(self, models: Models, points: Nudges) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        v = models.velocities["policy"](points.x_t, points.t, points.condition)
        x0 = recovered(points.x_t, points.t, points.until, v, points.eps)
        up = points.until > points.t
        score, slope = models.slope(x0.detach(), points.condition, self.wording(up))
        sign = torch.where(up, -1.0, 1.0).to(score)
        loss = ascent(x0, sign * score, over(sign, slope) * slope)
        if self.ceiling is not None:  # of the reward, whichever way the step goes
            loss = (score < self.ceiling).to(loss) * (loss + self.ceiling * sign.to(loss))
        return loss, self.watched(score, slope)
