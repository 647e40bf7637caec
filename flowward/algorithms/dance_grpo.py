"""DanceGRPO (Xue, Wu, Gao, Kong, Zhu, Chen, Liu, Liu, Guo, Huang, Luo, 2025, arXiv:2505.07818).

The same noise at every level (laws.DanceSDE), all samples of a prompt from one start, and of each sample's random steps
a random 60 % trained on. Standard deviations divide by n - 1. Nothing ties the policy to a reference. For video, only
the best and the worst of many samples are trained on (`points.extremes`: 8 of 24).

It degenerates on fine grids, where a constant noise is stiff near t = 0, and without variety: from one start, samples
differ by the noise of the steps alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class DanceGRPO(PolicyGradient):
    """The algorithm as a value; the defaults are the paper's for FLUX."""

    rollout: Chain = field(
        default_factory=lambda: Chain(16, 3.0, "linear", "dance-sde", 0.3, share=0.6, shared_start=True)
    )
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-8, 1))
