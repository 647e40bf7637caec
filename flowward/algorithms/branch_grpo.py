"""BranchGRPO (Li, Wang, Zhu, Zhao, Lu, She, Zhang, 2025, arXiv:2509.06040), and its released code.

A tree of random steps splits in two at several of them, and all steps are trained. The reward of a node is the mean
reward of its leaves. The advantage of a step is the z-score of the node that it leads to, among the nodes of one depth
of a tree (`points.views restandardised`, `cohorts root`). Children of a state share one forward pass.

Pruning leaves rollout and advantages alone and saves passes with gradient. Depth pruning (`rollout.pruned`) leaves out
some late steps, and moves towards the last split. Width pruning (`points.extremes`) trains only on steps to the images
of a prompt with the highest and the lowest advantages, which compare the images of a tree. The released script uses
neither. BranchGRPO-Mix is `rollout.between ode` without its extra window.

Differences: the released code draws the noise of a split four times as large, and scores it with the density of the
smaller noise; here the density is that of the noise. It can weigh leaves by their path's probability (off by default);
that is left out. The last step is never random here.

Cost: 20 steps with splits at 0, 3, 6 and 9 give 16 images for 203 evaluations, 12.7 per image. The paper counts 13.7,
the 219 nodes of the tree over 16, since it evaluates a state once per child.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..learning.moves import RandomSteps
from ..process.splits import Splits
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class BranchGRPO(PolicyGradient):
    """BranchGRPO's settings; the defaults are the released ones for FLUX."""

    rollout: Splits = field(default_factory=lambda: Splits(20, 3.0, "linear", shared_start=True))
    credit: ZScore = field(default_factory=lambda: ZScore("group", 1e-8, 1))
    points: RandomSteps = field(default_factory=lambda: RandomSteps(views="restandardised"))
    clip: float | None = 1e-3
