"""Flow-GRPO-Fast: two algorithms of this name in the code of Flow-GRPO (arXiv:2505.05470).

The later one is the default: a short window of random steps at a random place, the ODE elsewhere, each sample with
noise of its own. The earlier one branches: an ODE trunk to a random step, 9 children there, one or two random steps,
and the ODE to the end (`Branches(one=True, high=6, fanout=9, noise=0.8, cohorts="prompt")` as the rollout, `gaussian`
as the ratio: the preset `branching`). There every process drew the same place for a whole run; here places are drawn
for each iteration, the same on all ranks.

Two trained steps are reported to do as well as nine. It degenerates like any window where its steps have little noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Branches, Chain
from ..process.windows import Window
from .policy_gradient import PolicyGradient, Ratio


@dataclass(frozen=True)
class FlowGRPOFast(PolicyGradient):
    """The algorithm as a value; the defaults are those of the released setting without guidance, with CPS."""

    rollout: Chain | Branches = field(
        default_factory=lambda: Chain(law="cps", noise=0.8, window=Window(3, "random", high=5))
    )
    credit: ZScore = field(default_factory=lambda: ZScore("pooled"))
    ratio: Ratio = "cps"
    clip: float = 1e-5
