"""DanceGRPO (Xue, Wu, Gao, Kong, Zhu, Chen, Liu, Liu, Guo, Huang, Luo, 2025, arXiv:2505.07818).

The noise strength is the same at every time (laws.DanceSDE). All samples of a prompt start from the same noise, and
a random 60 % of each sample's random steps are trained on. Standard deviations divide by n - 1. There is no penalty
towards a reference model. For video, only the best and the worst of many samples are trained on (`points.extremes`:
8 of 24).

Limits: on fine grids, constant noise is stiff near t = 0. And samples may lack variety, since only the noise of the
steps differs between them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class DanceGRPO(PolicyGradient):
    """DanceGRPO's settings; the defaults are the paper's for FLUX."""

    rollout: Chain = field(
        default_factory=lambda: Chain(16, 3.0, "linear", "dance-sde", 0.3, share=0.6, shared_start=True)
    )
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-8, 1))
