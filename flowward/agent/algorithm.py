"""AgentFlow: group-relative policy optimisation of the planner inside the running system.

Li et al., 2025, arXiv:2510.05592 (ICLR 2026). The paper calls the optimiser Flow-GRPO; here that name belongs to the
image method of arXiv:2505.05470.

An episode i of a question has T_i turns. Its one outcome R_i is compared with those of the G episodes of the same
question, and given to every turn and every token of the planner:

    A_i = (R_i - mean_k R_k) / (std_k R_k + floor),           k = 1 .. G
    rho_itj = pi(a_itj | s_it, a_it<j) / pi_old(the same)
    J = mean_i 1/T_i sum_t 1/|a_it| sum_j min(rho A, clip(rho, 1 - low, 1 + high) A) - beta KL(pi || reference)

s_it is the planner's prompt of that turn (question, analysis, tools, memory). What tools and other modules write
stands in prompts only, so it has no gradient. The KL is estimated per token by k3 = exp(d) - d - 1 with
d = log reference - log pi.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import log
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from ..learning.credit import ZScore
from ..learning.mixing import Mix, rewards_first
from ..learning.snapshots import Decay
from ..learning.terms import clipped_ratio, log_bounds
from ..system.errors import not_negative, one_of, positive
from .points import Chosen, Decisions, Trace, Turns, Weighting

Statistics = Literal["trajectory", "turn"]
FAR = 20.0  # largest |d| in k3: exp(20) is 5e8


class LogProbs(Protocol):
    """The log-probabilities that the loss may ask for."""

    def at(self, name: str, points: Decisions) -> Tensor: ...  # [B, L], of `policy`, `old` or `reference`


def surrogate(
    log_prob: Tensor, old: Tensor, advantage: Tensor, low: float = 0.2, high: float = 0.3, dual: float | None = None
) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) of each token, float64 [B, L].

    Args:
        log_prob, old: [B, L], of each token under the policy and under what sampled it; old is a constant.
        advantage: [B].
        dual: also bound the loss of a negative advantage by dual * |A| (dual clip, arXiv:1912.09729).
    """
    a = advantage.double()[:, None]
    log_ratio = log_prob.double() - old.detach().double()
    if dual is not None:  # in logarithms, so that a ratio beyond the bound cannot overflow
        log_ratio = torch.where(a < 0, log_ratio.clamp_max(log(dual)), log_ratio)
    return clipped_ratio(log_ratio, a, low, high)


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """exp(d) - d - 1 with d = log reference - log pi, of each token, float64: an unbiased estimate of KL(pi, reference)
    for tokens that pi sampled (Schulman, 2020, "Approximating KL divergence"). d is clamped to +/- 20.

    The gradient of a loss, with the tokens held fixed, averages to that of KL(reference, pi) (`flowward verify`).
    """
    d = (reference.detach().double() - log_prob.double()).clamp(-FAR, FAR)
    return d.expm1() - d


@dataclass(frozen=True)
class AgentFlow:
    """AgentFlow's optimisation of a planner (arXiv:2510.05592)."""

    credit: ZScore = field(default_factory=lambda: ZScore("group", ddof=1))
    statistics: Statistics = "trajectory"
    """count each episode once in mean and standard deviation (`trajectory`), or once per `turn` (the released code)"""
    weights: Weighting = "paper"
    """average over tokens, then turns, then episodes (`paper`), over each `episode`'s tokens, or over every `token`"""
    low: float = 0.2
    """clip the ratio below at 1 - low"""
    high: float = 0.3
    """clip the ratio above at 1 + high"""
    beta: float = 1e-3
    """weight of the KL divergence from the planner before training (0: none)"""
    dual: float | None = None
    """bound the loss of negative advantages by this many times |A| (verl: 3; none: off)"""
    turns: Chosen = "all"
    """train `all` turns, or for comparisons the `first` or `last` turn only"""

    behaviour = "policy"
    guidance = 1.0

    def __post_init__(self) -> None:
        one_of("unit of statistics", self.statistics, get_args(Statistics))
        one_of("weighting of tokens", self.weights, get_args(Weighting))
        one_of("choice of turns", self.turns, get_args(Chosen))
        positive(self, "high")
        not_negative(self, "beta")
        if not 0 < self.low <= 1:
            raise ValueError(f"low must lie in (0, 1], not {self.low:g}")
        if self.dual is not None and not self.dual > 1:
            raise ValueError(f"dual must be above 1, not {self.dual:g}")

    @property
    def copies(self) -> dict[str, Decay]:
        """None: the log-probabilities of the rollout are recorded."""
        return {}

    @property
    def anchors(self) -> Mapping[str, float]:
        """Log-probabilities that the loss needs beside the policy's."""
        return {"reference": 1.0} if self.beta > 0 else {}

    @property
    def skips_silent(self) -> bool:
        """Without the KL term, a turn whose advantage is 0 has no gradient, so it is not evaluated."""
        return self.beta == 0

    def advantages(
        self,
        trace: Trace,
        rewards: Tensor,
        group: Tensor,
        kept: Tensor,
        weights: Tensor | None = None,
        mix: Mix = rewards_first,
    ) -> Tensor:
        """The advantage of each turn of the trace, float64 [T].

        Args:
            rewards: [n, R] of n episodes. The trace names an episode by its row.
            group: [n], the number of the question.
            kept: [n] bool; the others have failed, and are left out of their groups.
            weights: [R], of the rewards; all 1 unless given.
            mix: how several rewards become one advantage.
        """
        if not len(trace):
            return torch.zeros(0, dtype=torch.float64)
        weights = torch.ones(rewards.shape[1], dtype=torch.float64) if weights is None else weights
        if self.statistics == "turn":
            turns = trace.episode
            return mix(self.credit, rewards[turns], weights, group[turns])
        advantage = torch.zeros(len(group), dtype=torch.float64)
        advantage[kept] = mix(self.credit, rewards[kept], weights, group[kept])
        return advantage[trace.episode]

    def points(self, trace: Trace, advantage: Tensor) -> Turns:
        """The training points of turns with these advantages [T]."""
        return Turns(trace, advantage, self.weights)

    def loss(self, models: LogProbs, points: Decisions) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each turn [B], summed over its tokens with their weights, and what is worth watching.

        Before the first update the policy is what sampled, so the ratio is 1 by definition.
        """
        log_p = models.at("policy", points)
        recorded, advantage = points.known["old"].to(log_p.device), points.advantage.to(log_p.device)
        old = log_p.detach() if points.fresh else recorded
        loss = surrogate(log_p, old, advantage, self.low, self.high, self.dual)
        there, a = points.answer.to(log_p.device) >= 0, advantage[:, None]
        tokens = there.sum(1)
        ratio = (log_p.detach().double() - old.double()) * there
        low, high = log_bounds(self.low, self.high)
        watched = {
            "log_ratio": ratio.sum(1) / tokens,
            "clipped_up": ((ratio > high) & (a > 0) & there).sum(1) / tokens,
            "clipped_down": ((ratio < low) & (a < 0) & there).sum(1) / tokens,
        }
        if self.beta > 0:
            kl = k3(log_p, models.at("reference", points))
            loss = loss + self.beta * kl
            watched["kl"] = (kl.detach() * there).sum(1) / tokens
        if points.fresh:
            apart = ((log_p.detach().double() - recorded.double()) * there).abs().amax(1)
            watched["first_ratio_max"] = apart
            watched["first_ratio_in_clips_max"] = apart / high
        return (loss * points.weight.to(log_p.device)).sum(1), watched
