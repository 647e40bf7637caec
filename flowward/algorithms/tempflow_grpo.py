"""TempFlow-GRPO (He, Fu, Zhao, Li, Yang, Yin, Rao, Zhang, 2025, arXiv:2508.04324).

One ODE trunk per start; at every step children branch off by one random step and follow the ODE to their samples. The
reward of a child then judges that one step, among the children of the same state. Steps are weighed by their noise
over its mean, which cancels the 1 / sigma of the density's gradient: what is left grows with the length of a step. (The
released code has 1 / mean as the constant 2.25 of one grid.)

It costs: a start of 10 steps with 6 children each gives 54 samples for 279 evaluations.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.plans import Branches
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class TempFlowGRPO(PolicyGradient):
    """The algorithm as a value; the defaults are the paper's for GenEval."""

    rollout: Branches = field(default_factory=lambda: Branches(guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RandomSteps = field(default_factory=lambda: RandomSteps("noise"))
    beta: float = 0.004
