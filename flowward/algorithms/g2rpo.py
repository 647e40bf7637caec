"""G2RPO, Granular-GRPO (Zhou et al., 2025, arXiv:2510.01982).

One ODE trunk per prompt; at each of the first steps children branch off by one random step, and each is finished on
several grids, thinned by different strides. The advantages of a child's samples are put together, so that a step is
judged at several granularities. All children of a state share one forward.

The paper adds the advantages of views up, which are then no longer of variance 1 (`points.views restandardised` makes
them so). It degenerates where a thinned grid is too coarse for a sample that can be scored.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Branches
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class G2RPO(PolicyGradient):
    """The algorithm as a value; the defaults are the paper's for FLUX."""

    rollout: Branches = field(
        default_factory=lambda: Branches(
            16, 3.0, "linear", high=8, fanout=12, strides=(1, 2, 3), cohorts="branch", shared_start=True
        )
    )
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-8, 1))
