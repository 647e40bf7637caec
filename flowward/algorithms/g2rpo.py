"""G2RPO, Granular-GRPO (Zhou et al., 2025, arXiv:2510.01982).

There is one ODE trunk per prompt. At each of the first steps, children branch off by one random step, and each is
finished on several grids with different strides. The advantages of a child's samples are combined, so a step is
evaluated at several granularities. All children of a state share one forward pass. The presets take one optimiser step
per random step, first to last (`points.order by-step`), as the released code does: from the second one on, the ratio is
not 1. The scripts use the strides 1 and 2, the paper 1, 2 and 3.

The paper adds up the advantages of the views, so their variance is no longer 1 (`points.views restandardised` restores
it). Limits: if a grid is too coarse, its samples cannot be scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Branches
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class G2RPO(PolicyGradient):
    """G2RPO's settings; the defaults are the paper's for FLUX."""

    rollout: Branches = field(
        default_factory=lambda: Branches(
            16, 3.0, "linear", high=8, fanout=12, strides=(1, 2, 3), cohorts="branch", shared_start=True
        )
    )
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-8, 1))
