"""Flash-GRPO (2026, arXiv:2605.15980), and its released code for Wan 2.1.

Every sample has a single random step and is trained on it alone, so an image costs S evaluations to sample and one to
train. All images of a prompt take the same step, and each prompt draws its own: steps of equal difficulty are compared,
and an update sees many of them. The loss of a step is weighed by

    w = (sigma / |Q|) / mean over the iteration

which cancels the factor |Q| / sigma in the gradient of the density, so that all steps pull equally (`points.weight
pull`). On policy this is GRPO-Guard up to the first step, whose Q is smaller by 1 + a^2 / 2 in a FlowSDE.

Not to be confused with MixGRPO-Flash (`mix_grpo_flash`: a coarser grid after the window) and Flow-GRPO-Fast
(`flow_grpo_fast`: a window of two or three steps that all prompts share). The released code takes w from a table for
20 steps at shift 3; it is LinearSDE's, and is computed here for any grid. Its mean is over the microbatches of all
processes; here it is over the iteration, so it does not depend on batch sizes.

Limits: with few prompts per update, an update sees few different steps.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.plans import Chain
from ..process.windows import Window
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class FlashGRPO(PolicyGradient):
    """Flash-GRPO's settings; the defaults are the released ones for Wan 2.1 1.3B."""

    rollout: Chain = field(
        default_factory=lambda: Chain(
            20, 3.0, "linear", "linear-sde", 0.9825, Window(1, "per-prompt", high=10), guidance=4.5
        )
    )
    credit: ZScore = field(default_factory=lambda: ZScore("pooled"))
    points: RandomSteps = field(default_factory=lambda: RandomSteps("pull"))
    clip: float | None = 1e-3
