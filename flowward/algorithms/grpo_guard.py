"""GRPO-Guard (Wang et al., 2025, arXiv:2510.22319).

The expectation of Flow-GRPO's log ratio is below 0, by an amount that differs from step to step, so the clip holds
back the steps that go wrong and lets pass those that go right. Here the ratio is the shift of the mean along the noise
alone, Q mean(z d), whose expectation is 0 at every step; and the loss of a step is divided by its length, so that
all steps pull alike. (The released code subtracts the bias of the whole batch from each sample; this is by sample.)

Its clip is smaller than the others', and not portable.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.plans import Chain
from .policy_gradient import PolicyGradient, Ratio


@dataclass(frozen=True)
class GRPOGuard(PolicyGradient):
    """The algorithm as a value; the defaults are the paper's for GenEval."""

    rollout: Chain = field(default_factory=lambda: Chain(guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RandomSteps = field(default_factory=lambda: RandomSteps("per-time"))
    ratio: Ratio = "guard"
    clip: float = 2e-6
