"""TurningPoint-GRPO, TP-GRPO (Tong et al., 2026, arXiv:2602.06422), and its released code.

A chain of n random steps gives n + 1 images: the ODE completes its first state and the state after every step. With
their rewards R_0 (the ODE alone) to R_n (the chain), a step has a reward of its own:

    d_j = R_j - R_i,   i = j - 1,   G = R_n - R_0 = sum_j d_j,   s_j = sign(d_j) sign(G)
    turning point:  s_i < 0 < s_j, or s_1 > 0 for the first step
    gain (paper):   r_j = d_j, and R_n - R_i at a turning point
    trend (code):   r_j = G, plus d_j at a turning point

Advantages are z-scores of r_j among the steps of one number of a prompt. `points.rewards` chooses the form. The code
has both and many more as switches; all its settings use `trend`, with the factor 1 before d_j. That the paper's form
puts the long-term reward in the place of d_j, and not beside it, could not be confirmed.

Cost: S + (sum over j of what is left of the grid) evaluations per chain, and n + 1 images to decode and score. With 6
steps, of which 5 are random, these are 21 evaluations and 6 images; without shared states they would be 27.
Limits: with a reward of 0 or 1, most d_j are 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.completions import CompletedChain
from .policy_gradient import PolicyGradient, Ratio


@dataclass(frozen=True)
class TurningPointGRPO(PolicyGradient):
    """TurningPoint-GRPO's settings; the defaults are the released ones for Stable Diffusion 3.5 Medium."""

    rollout: CompletedChain = field(default_factory=lambda: CompletedChain(law="cps", noise=0.7, guidance=4.5))
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RandomSteps = field(default_factory=lambda: RandomSteps(rewards="trend"))
    ratio: Ratio = "cps"
    clip: float | None = 1e-5
