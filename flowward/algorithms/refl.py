"""ReFL: the gradient of a reward at a late clean prediction (Xu et al., 2023, arXiv:2304.05977).

The sampler runs without a gradient to one of its late states, drawn at random. One step with a gradient leads from
there to data, through the decoder and into the reward:

    l = max(c - R(decode(f)), 0)   or   -R(decode(f)),   f = x_t - t v(x_t, t)

Why this form: rewards can judge the clean predictions of late steps, so one evaluation of the network with a gradient
is enough, and the range of steps spreads what is learned. At the last step it is DRaFT-1. Samples that already score
above c have no gradient.

Limits: those of DRaFT; early steps get no gradient. The paper adds a loss on its pretraining data, which is not here.

What could not be confirmed: the paper's constants for flow models. It was written for Stable Diffusion 1.4, 40 steps,
and its range of steps (the last 10) and gate are those of its text, as others report them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..learning.trails import LateStep, Tails
from ..process.policy import PLAIN, Models
from ..process.trails import Trail
from .ascent import Differentiating, ascent, unrolled


@dataclass(frozen=True)
class ReFL(Differentiating):
    """ReFL's settings; the late steps are the last `rollout.kept`."""

    rollout: Trail = field(default_factory=lambda: Trail(kept=3))
    points: LateStep = field(default_factory=LateStep)

    def loss(self, models: Models, points: Tails) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        f = unrolled(models.velocities["policy"], points.x_t, points.way, points.condition)
        score, slope = models.slope(f.detach(), points.condition, PLAIN)
        return ascent(f, score, slope, self.ceiling), self.watched(score, slope)
