"""Rewards of single steps of a chain, from the rewards of all its completions (TurningPoint-GRPO, arXiv:2602.06422)."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn.functional import pad

StepReward = Literal["gain", "trend"]


def gains(rewards: Tensor) -> Tensor:
    """d_j = R_j - R_{j-1}, [N, n], of rewards [N, n + 1]: R_j after j random steps that the ODE completes."""
    return rewards.diff(dim=1)


def turning_points(rewards: Tensor) -> Tensor:
    """Steps from which on a chain goes where it ends, bool [N, n], of rewards [N, n + 1].

    With s_j = sign(d_j) sign(R_n - R_0), step j is one if s_{j-1} < 0 < s_j; the first step is one if s_1 > 0.
    """
    trend = rewards[:, -1:] - rewards[:, :1]
    sign = gains(rewards).sign() * trend.sign()
    before = pad(sign[:, :-1], (1, 0), value=-1.0)
    return (before < 0) & (sign > 0)


def step_rewards(rewards: Tensor, kind: StepReward) -> Tensor:
    """The reward of each step, [N, n], of rewards [N, n + 1].

    `gain`: d_j, but R_n - R_{j-1} at a turning point (the paper). `trend`: R_n - R_0 for every step, plus d_j at a
    turning point (the released settings). Both are linear in a common scale of the rewards, and a common constant does
    not change them.
    """
    own, turning = gains(rewards), turning_points(rewards)
    if kind == "gain":
        return (rewards[:, -1:] - rewards[:, :-1]).where(turning, own)
    return rewards[:, -1:] - rewards[:, :1] + own * turning
