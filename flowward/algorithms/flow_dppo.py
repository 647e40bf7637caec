"""Flow-DPPO (Ping, Zhou, Qi, Luo, Bo, Pang, 2026, arXiv:2606.11025).

Flow-GRPO without a clip. A random step is Gaussian, so its KL from the rollout policy is known exactly, whatever noise
was drawn. A step is stopped if this KL has reached the trust and the step goes outward:

    KL = D Q^2 mean(d^2) / (2 sigma^2)
    stop = KL >= trust and ((rho > 1 and A > 0) or (rho < 1 and A < 0))
    l = 0 if stop, else -A rho

The paper's threshold delta is the KL per element, so trust = delta D means the same for every image size. Stopped steps
count as 0 in the mean. Two or more updates per rollout are needed: in the first one KL = 0, and no step is stopped.

log rho has a mean below 0, so beyond a large KL nearly all stopped steps have A < 0 (`outward`: ratio, as published).
That is close to the exact test of appendix E, `gradient`: a step with A > 0 pulls the policy back to where it drew the
sample. `noise` stops both signs alike.

Limits: the trained steps here are a window of three adjacent ones. The released code draws three steps of the first
half that need not be adjacent.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..learning.credit import ZScore
from ..process.plans import Chain
from ..process.windows import Window
from .policy_gradient import PolicyGradient


@dataclass(frozen=True)
class FlowDPPO(PolicyGradient):
    """Flow-DPPO's settings; the defaults are those of the released code, for images of 65,536 numbers."""

    rollout: Chain = field(default_factory=lambda: Chain(window=Window(3, "random", high=5)))
    credit: ZScore = field(default_factory=lambda: ZScore("pooled"))
    clip: float | None = None
    trust: float | None = 0.655
    advantage_clip: float = 1000.0  # none is published
