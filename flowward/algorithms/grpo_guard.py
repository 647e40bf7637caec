"""GRPO-Guard (Wang et al., 2025, arXiv:2510.22319).

The expectation of Flow-GRPO's log ratio is below 0, by an amount that differs between steps. So the clip acts on
negative and positive advantages unequally. Here the log ratio is only the shift of the mean along the noise,
Q mean(z d). Its expectation is 0 at every step. The loss of a step is divided by the step's length, so that the
gradients of all steps are equally large. (The released code subtracts the bias of the whole batch from each sample;
here it is subtracted per sample.)

Its clip is smaller than in the other algorithms, and cannot be transferred to them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.plans import Chain
from .policy_gradient import PolicyGradient, Ratio


@dataclass(frozen=True)
class GRPOGuard(PolicyGradient):
    """GRPO-Guard's settings; the defaults are the paper's for GenEval."""

    rollout: Chain = field(default_factory=lambda: Chain(guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RandomSteps = field(default_factory=lambda: RandomSteps("per-time"))
    ratio: Ratio = "guard"
    clip: float | None = 2e-6
