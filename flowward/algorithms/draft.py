"""DRaFT-K: the gradient of a reward through the last K sampling steps (Clark et al., 2023, arXiv:2309.17400).

The sampler runs without a gradient to x_K, the state before its last K steps. From there it runs again with one,
through the decoder and into the reward:

    l = -R(decode(x0)),   x0 = K Euler steps from sg[x_K]

Why this form: the whole chain (K = S) gives the exact derivative of E[R] but needs the memory of S networks, and its
gradients explode. The last step alone (DRaFT-1) costs one, and is what most runs use. The loss hands the network
-dR/dx0 as a constant, so that reward and decoder are differentiated once, without weights.

Limits: nothing holds the policy to the reference model but the learning rate, LoRA's rank and early stopping. Rewards
are exploited fast; watch a guard (docs/howto/differentiable_rewards.md). Early steps, which decide what is in the
picture, get no gradient with a small K.

What could not be confirmed: learning rate and batch of the paper are not known to us.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from ..learning.trails import LastSteps, Tails
from ..process.policy import PLAIN, Models
from ..process.trails import Trail
from .ascent import Differentiating, ascent, unrolled


@dataclass(frozen=True)
class DRaFT(Differentiating):
    """DRaFT-K's settings; K is `rollout.kept`. The default is DRaFT-1."""

    rollout: Trail = field(default_factory=Trail)
    points: LastSteps = field(default_factory=LastSteps)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rollout.noise != "ode":
            raise ValueError("the steps that are run again follow the ODE: leave --algorithm.rollout.noise at ode")

    def loss(self, models: Models, points: Tails) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each point [B], and metrics."""
        x0 = unrolled(models.velocities["policy"], points.x_t, points.way, points.condition)
        score, slope = models.slope(x0.detach(), points.condition, PLAIN)
        return ascent(x0, score, slope, self.ceiling), self.watched(score, slope)
