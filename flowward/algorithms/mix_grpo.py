"""MixGRPO (Li, Cui, Huang, Ma, Fan, Yang, Zhong, 2025, arXiv:2507.21802).

Only the steps in a window are random; all others follow the ODE. During training the window moves from noise to data.
There are fewer steps to train, and the reward depends on fewer random numbers. `mix_grpo_flash` also uses fewer steps
after the window.

Limits: the window can leave the times that matter to the reward (see windows.Window for its schedules).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from ..process.windows import Window
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class MixGRPO(PolicyGradient):
    """MixGRPO's settings; the defaults are the paper's for FLUX."""

    rollout: Chain = field(
        default_factory=lambda: Chain(25, 3.0, "linear", window=Window(4, high=23), shared_start=True)
    )
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-8, 1))
