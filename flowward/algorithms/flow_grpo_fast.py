"""Flow-GRPO-Fast: two algorithms of this name in the code of Flow-GRPO (arXiv:2505.05470).

The later one is the default. It has a short window of random steps at a random position, ODE steps elsewhere, and
independent noise per sample. The earlier one branches (preset `branching`): an ODE trunk to a random step, 9 children
there, two random steps, and the ODE to the end. Its rollout is
`Branches(one=True, high=6, fanout=9, length=2, noise=0.8, cohorts="prompt")`, its ratio `gaussian`. In the released
code of the earlier one, every process used the same position for a whole run; in that of the later one, a position is
drawn for each batch of images. Here one is drawn per iteration, for all images.

Two trained steps are reported to work as well as nine. Limits: as for any window, steps with little noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Branches, Chain
from ..process.windows import Window
from .policy_gradient import PolicyGradient, Ratio


@dataclass(frozen=True)
class FlowGRPOFast(PolicyGradient):
    """Flow-GRPO-Fast's settings; the defaults are the released ones without guidance, with CPS."""

    rollout: Chain | Branches = field(
        default_factory=lambda: Chain(law="cps", noise=0.8, window=Window(3, "random", high=5))
    )
    credit: ZScore = field(default_factory=lambda: ZScore("pooled"))
    ratio: Ratio = "cps"
    clip: float | None = 1e-5
