"""Flow-GRPO (Liu, Liu, Liang, Li, Liu, Wang, Wan, Zhang, Ouyang, 2025, arXiv:2505.05470).

The flow's ODE is turned into an SDE with the same marginals (laws.FlowSDE), so that every step but the last is Gaussian
and PPO's clipped gradient applies. Rewards are compared within a prompt, and divided by the spread of all of them. Few
steps are enough to train with (10, against 40 to sample). beta is in the units of the released code, whose divergence
leaves out a factor of t - s.

It degenerates on steps with little noise: at the end of the SD3 grid one leaves 27 times as much noise as its level
calls for (`laws.excess`), and the gradient of its density is 26 times that of the first.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from .policy_gradient import Divergence, PolicyGradient


@dataclass(frozen=True)
class FlowGRPO(PolicyGradient):
    """The algorithm as a value; the defaults are the paper's for GenEval."""

    rollout: Chain = field(default_factory=lambda: Chain(guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("pooled"))
    beta: float = 0.04
    divergence: Divergence = "per-noise"
