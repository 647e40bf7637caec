"""MixGRPO-Flash (Li, Cui, Huang, Ma, Fan, Yang, Zhong, 2025, arXiv:2507.21802).

MixGRPO with fewer steps after the window, solved to second order: DPM-Solver++(2M) on a grid that is coarser in
unshifted time. Steps before the window are unchanged, because the trained steps depend on them. Flash* keeps the
window at the first steps (`Window(4, "frozen")` and tail 0.2).

The paper's coarse grid can miss t = 0; this one always ends there. For the first step after the window, the released
code computes a slope with the data prediction of the last random step. Here that step is of first order, because fresh
noise lies between the two predictions.

Limits: with too few steps, the scored samples differ from those of the full grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..process.plans import Chain
from ..process.windows import Window
from .mix_grpo import MixGRPO


@dataclass(frozen=True)
class MixGRPOFlash(MixGRPO):
    """MixGRPO-Flash's settings; the defaults are the paper's for FLUX."""

    rollout: Chain = field(
        default_factory=lambda: Chain(
            25, 3.0, "linear", window=Window(4, every=20, high=23), shared_start=True, tail=0.4
        )
    )
