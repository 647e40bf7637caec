"""DDPO (Black, Janner, Du, Kostrikov, Levine, 2023, arXiv:2305.13301).

The first of the family: sampling with noise is a decision process whose policy is Gaussian, so the clipped policy
gradient of PPO applies to every step. DDIM with eta = 1, every step random and trained. Its law is the same on a
variance-preserving schedule and on a flow's (laws.DDIM). In the paper rewards are compared with what the prompt
earned in this iteration and the last ones, and with the whole batch until there are 16 of them (`--reward-buffer 32
--algorithm.credit.least 16`, as the presets have it; by default, with the prompt's images of this iteration). The batch
is then all rewards of its prompts, those of earlier iterations too; in the released code, those of this one. There the
last step keeps a little noise and is trained; here it has none and is not.

It degenerates where a step has almost no noise: there the gradient of its density outweighs all others.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class DDPO(PolicyGradient):
    """The algorithm as a value; the defaults are the paper's."""

    rollout: Chain = field(default_factory=lambda: Chain(50, 1.0, "linear", "ddim", 1.0, guidance=5.0))
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-6))
