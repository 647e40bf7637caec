"""MixGRPO-Flash (Li, Cui, Huang, Ma, Fan, Yang, Zhong, 2025, arXiv:2507.21802).

MixGRPO whose steps after the window are fewer and of second order: DPM-Solver++(2M) on a grid that is coarser in
unshifted time. Steps before the window stay as they are, since what is trained on depends on them. Flash* keeps the
window at the first steps (`Window(4, "frozen")` and tail 0.2). The paper's coarse grid can miss t = 0; this one never
does. The released code also takes the data prediction of the last random step for the slope of the first step after it;
here that step is of first order, since the prediction lies on the other side of fresh noise.

It degenerates where so few steps are left that the samples which are scored are not those of the full grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..process.plans import Chain
from ..process.windows import Window
from .mix_grpo import MixGRPO


@dataclass(frozen=True)
class MixGRPOFlash(MixGRPO):
    """The algorithm as a value; the defaults are the paper's for FLUX."""

    rollout: Chain = field(
        default_factory=lambda: Chain(
            25, 3.0, "linear", window=Window(4, every=20, high=23), shared_start=True, tail=0.4
        )
    )
