"""TempFlow-GRPO (He, Fu, Zhao, Li, Yang, Yin, Rao, Zhang, 2025, arXiv:2508.04324).

There is one ODE trunk per root. At every step, children branch off by one random step and follow the ODE to their
samples. So the reward of a child evaluates that single step, compared with the other children of the same state. The
weight of a step is its noise over the mean noise. This cancels the factor 1 / sigma in the gradient of the density;
what remains grows with the length of the step. (In the released code 1 / mean is 2.25, a constant for one grid.)

Cost: a root of 10 steps with 6 children each gives 54 samples for 279 network evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.plans import Branches
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class TempFlowGRPO(PolicyGradient):
    """TempFlow-GRPO's settings; the defaults are the paper's for GenEval."""

    rollout: Branches = field(default_factory=lambda: Branches(guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RandomSteps = field(default_factory=lambda: RandomSteps("noise"))
    beta: float = 0.004
