"""DDPO (Black, Janner, Du, Kostrikov, Levine, 2023, arXiv:2305.13301).

The first of its family: sampling with noise is a decision process with a Gaussian policy, so PPO's clipped policy
gradient applies to every step. The sampler is DDIM with eta = 1; all steps are random and trained. The distribution of
its steps is the same on a variance-preserving schedule and on a flow's (laws.DDIM).

The paper compares a reward with the prompt's rewards of this and earlier iterations. As long as there are fewer than
16 of them, it compares with the whole batch. The presets do this by `--reward-buffer 32 --algorithm.credit.least 16`;
the default is to compare within this iteration. With a reward buffer the batch includes rewards of earlier iterations;
in the released code it does not. There, the last step keeps a little noise and is trained; here it has no noise and is
not.

Limits: if a step has almost no noise, the gradient of its density dominates all others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class DDPO(PolicyGradient):
    """DDPO's settings; the defaults are the paper's."""

    rollout: Chain = field(default_factory=lambda: Chain(50, 1.0, "linear", "ddim", 1.0, guidance=5.0))
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-6))
