"""Flow-GRPO (Liu, Liu, Liang, Li, Liu, Wang, Wan, Zhang, Ouyang, 2025, arXiv:2505.05470).

The flow's ODE is turned into an SDE with the same marginals (laws.FlowSDE). Every step but the last is then Gaussian,
and PPO's clipped policy gradient applies. Rewards are centred per prompt and divided by the standard deviation of all
rewards. Few steps are enough for training (10, compared with 40 for sampling). beta is in the units of the released
code, whose divergence omits a factor of t - s.

Limits: steps with little noise. At the end of the SD3 grid, one step leaves 27 times the correct amount of noise
(`laws.excess`). The gradient of its density is 26 times that of the first step.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from .policy_gradient import Divergence, PolicyGradient


@dataclass(frozen=True)
class FlowGRPO(PolicyGradient):
    """Flow-GRPO's settings; the defaults are the paper's for GenEval."""

    rollout: Chain = field(default_factory=lambda: Chain(guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("pooled"))
    beta: float = 0.04
    divergence: Divergence = "per-noise"
