"""Clipped policy gradients on random steps: the equation that all reverse-process algorithms share.

A random step x_s = P x_t + Q v(x_t, t) + sigma z is Gaussian, so with d = v - v_old and the noise z that was drawn

    log rho = alpha mean(z d) - gamma mean(d^2)
    l = w max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) + beta omega mean((v - v_ref)^2)

and the published methods differ in four numbers of a step (alpha, gamma: the ratio; w: its weight; omega: the
divergence), in which steps are random, and in how their rewards are compared. Means run over the D elements of a
sample; the ratio of two densities is rho^D, which is why clips are as small as they are. Flow-DPPO has no clip: it
stops a step by its KL from the rollout policy (`trust`, in nats).
(DDPO: Black et al., 2023, arXiv:2305.13301, after Schulman et al., 2017, arXiv:1707.06347.)
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..learning.credit import ZScore
from ..learning.moves import Moves, RandomSteps
from ..learning.snapshots import Decay
from ..learning.terms import clipped_ratio, log_bounds, masked_ratio
from ..process.flow import mean, wide
from ..process.plans import Branches, Chain
from ..process.policy import Models
from ..process.splits import Splits
from ..system.errors import not_negative, one_of, positive
from .algorithm import Stale

Ratio = Literal["gaussian", "sum", "cps", "guard"]
Divergence = Literal["exact", "per-noise", "state", "velocity"]
Outward = Literal["ratio", "noise", "gradient"]

CLIPS: dict[Ratio | Literal["matching"], tuple[float, float]] = {
    "gaussian": (1e-7, 1e-2),
    "sum": (1e-2, 1.0),
    "cps": (1e-7, 1e-2),
    "guard": (1e-8, 9e-5),
    "matching": (1e-3, 1e-1),
}
"""Clips that make sense for each ratio: one that is copied from another would always bind, or never.

`matching` is V-GRPO's, a ratio of matching errors of whole images and no choice for random steps.
"""


def refuse_clip(ratio: Ratio | Literal["matching"], clip: float) -> None:
    """Raise ValueError for a clip of another kind of ratio."""
    low, high = CLIPS[ratio]
    if not low <= clip <= high:
        raise ValueError(f"clip {clip:g} does not fit the ratio '{ratio}'; its clips lie between {low:g} and {high:g}")


def ratio_scales(ratio: Ratio, q: Tensor, sigma: Tensor, elements: int) -> tuple[Tensor, Tensor]:
    """(alpha, gamma), [B] each, for steps with these numbers and samples of so many elements.

    `gaussian`: the mean of the log density over elements (DDPO and most others); `sum`: the log density itself;
    `cps`: the same without 1 / (2 sigma^2) (CPS, arXiv:2509.05952); `guard`: the mean's shift alone, whose
    expectation is 0 at any step (GRPO-Guard, arXiv:2510.22319).

    Raises:
        ValueError: a step has no noise.
    """
    if (sigma <= 0).any():
        raise ValueError("a step without noise has no density, so it has no ratio")
    match ratio:
        case "gaussian":
            return q / sigma, q**2 / (2 * sigma**2)
        case "sum":
            return elements * q / sigma, elements * q**2 / (2 * sigma**2)
        case "cps":
            return 2 * sigma * q, q**2
        case "guard":
            return q, torch.zeros_like(q)


def log_ratio(v: Tensor, v_old: Tensor, z: Tensor, q: Tensor, sigma: Tensor, ratio: Ratio = "gaussian") -> Tensor:
    """log rho, float64 [B, C]: exactly 0 where v = v_old. v, v_old [B, ...]; z [B, C, ...]; q, sigma [B]."""
    alpha, gamma = ratio_scales(ratio, q.double(), sigma.double(), v[0].numel())
    delta = (wide(v) - wide(v_old)).flatten(1)
    along = (wide(z).flatten(2) * delta[:, None]).mean(2, dtype=torch.float64)
    return alpha[:, None] * along - (gamma * delta.square().mean(1, dtype=torch.float64))[:, None]


def step_nats(v: Tensor, v_old: Tensor, q: Tensor, sigma: Tensor) -> Tensor:
    """KL between the distributions of x_s under v and v_old, in nats, float64 [B]: D Q^2 mean(d^2) / (2 sigma^2).

    It does not depend on the noise that was drawn, and is the same in both directions. Per element, log rho has the
    mean -KL / D and the standard deviation sqrt(2 KL) / D (Flow-DPPO, arXiv:2606.11025, Eq. 14).
    """
    square = mean((wide(v) - wide(v_old)).double() ** 2)
    return v[0].numel() * (q.double() / sigma.double()) ** 2 / 2 * square


def beyond_trust(
    v: Tensor,
    v_old: Tensor,
    z: Tensor,
    advantage: Tensor,
    q: Tensor,
    sigma: Tensor,
    trust: float,
    outward: Outward = "ratio",
) -> Tensor:
    """The steps that Flow-DPPO stops, bool [B, C]: KL >= trust, and the step goes outward.

    A step goes outward if A and one of these numbers have the same sign, with L the mean log density ratio and k the
    KL per element: L (`ratio`, as published in Eq. 18), L + k = (Q / sigma) mean(z d) (`noise`), or L - k (`gradient`,
    Eq. 26). L has the mean -k, so beyond a large KL `ratio` stops nearly no step with A > 0. The mean of L + k is 0, so
    `noise` stops both signs of A alike. `gradient` is exact: the gradient of the step's loss, as a function of v, would
    raise the KL.
    """
    nats = step_nats(v, v_old, q, sigma)[:, None]
    shift = {"ratio": 0.0, "noise": 1.0, "gradient": -1.0}[outward]
    side = log_ratio(v, v_old, z, q, sigma) + shift * nats / v[0].numel()
    return (nats >= trust) & (advantage * side > 0)


def divergence_scale(kind: Divergence, q: Tensor, sigma: Tensor, length: Tensor) -> Tensor:
    """omega, [B], of omega mean((v - v_ref)^2).

    `exact`: the Gaussian KL per element (TempFlow-GRPO); `per-noise`: that times t - s, as Flow-GRPO's code has it;
    `state` and `velocity`: the square of what the mean of x_s, or v, moves by (Flow-Factory).
    """
    match kind:
        case "exact":
            return q**2 / (2 * sigma**2)
        case "per-noise":
            return q**2 / (2 * sigma**2) * length
        case "state":
            return q**2
        case "velocity":
            return torch.ones_like(q)


def policy_gradient(
    v: Tensor,
    v_old: Tensor,
    v_ref: Tensor | None,
    z: Tensor,
    advantage: Tensor,
    q: Tensor,
    sigma: Tensor,
    length: Tensor,
    ratio: Ratio = "gaussian",
    clip: float | None = 1e-4,
    advantage_clip: float = 5.0,
    beta: float = 0.0,
    divergence: Divergence = "exact",
    weight: Tensor | None = None,
    trust: float | None = None,
    outward: Outward = "ratio",
) -> Tensor:
    """l summed over the steps of each state, float64 [B].

    Args:
        trust: if given, it takes the place of `clip` (see `beyond_trust`), and l = -w A rho, or 0 where stopped.
            With neither, l = -w A rho everywhere.
        v, v_old, v_ref: [B, ...]. v_old is a constant (v itself, detached, before the first update); v_ref may be None
            where beta is 0.
        z: [B, C, ...], the noise of C steps from each state.
        advantage, weight: [B, C]; weights are 1 / C unless given.
        q, sigma, length: [B], numbers of the step (laws.py); length is t - s.

    Raises:
        ValueError: a step has no noise.
    """
    a = advantage.double().clamp(-advantage_clip, advantage_clip)
    w = torch.full_like(a, 1 / a.shape[1]) if weight is None else weight
    v_old = v_old.detach()
    log_rho = log_ratio(v, v_old, z, q, sigma, ratio)
    if trust is None:
        loss = clipped_ratio(log_rho, w * a, inf if clip is None else clip).sum(1)
    else:
        stopped = beyond_trust(v.detach(), v_old, z, a, q, sigma, trust, outward)
        loss = masked_ratio(log_rho, w * a, stopped).sum(1)
    if v_ref is not None:
        omega = divergence_scale(divergence, q.double(), sigma.double(), length.double())
        loss = loss + beta * omega * mean((wide(v) - wide(v_ref)).double() ** 2)
    return loss


@dataclass(frozen=True)
class PolicyGradient:
    """A reverse-process algorithm as a value: noise schedule, tree, ratio, weight and divergence combine freely."""

    rollout: Chain | Branches | Splits = field(default_factory=Chain)
    credit: ZScore = field(default_factory=lambda: ZScore("group"))
    points: RandomSteps = field(default_factory=RandomSteps)
    ratio: Ratio = "gaussian"
    """ratio of a step's densities under the policy and the rollout (see `ratio_scales`)"""
    clip: float | None = 1e-4
    """clip the ratio to 1 +/- this; units differ between ratios (None: use --algorithm.trust)"""
    trust: float | None = None
    """instead of clip: stop a step that goes outward beyond this KL, in nats of the whole sample (Flow-DPPO)"""
    outward: Outward = "ratio"
    """with trust: A times which number is positive going outward: log `ratio`, shift along `noise`, or `gradient`"""
    advantage_clip: float = 5.0
    """clip advantages to +/- this"""
    beta: float = 0.0
    """weight of the divergence from the reference model (0: none)"""
    divergence: Divergence = "exact"
    """units of that divergence; beta is not portable between them"""

    behaviour = "policy"
    stale: ClassVar[Stale] = "recorded"

    def __post_init__(self) -> None:
        one_of("ratio", self.ratio, get_args(Ratio))
        one_of("divergence", self.divergence, get_args(Divergence))
        one_of("test of outward steps", self.outward, get_args(Outward))
        positive(self, "advantage_clip", *(name for name in ("clip", "trust") if getattr(self, name) is not None))
        not_negative(self, "beta")
        if self.points.order == "by-step" and self._per_prompt:
            raise ValueError(
                "points.order by-step needs the same random steps for all prompts: use it with window.order random, or "
                "points.order shuffled"
            )
        if (self.clip is None) == (self.trust is None):
            have = "both are" if self.trust else "neither is"
            raise ValueError(f"a step is limited either by its clip or by its trust, but {have} set: set one of them")
        if self.clip is None:
            return
        if self.outward != "ratio":
            raise ValueError(f"outward {self.outward} is for trust, but steps are limited by their clip")
        refuse_clip(self.ratio, self.clip)

    @property
    def guidance(self) -> float:
        """That of the rollout: the policy is what drew the samples, guidance and all."""
        return self.rollout.guidance

    @property
    def skips_silent(self) -> bool:
        """Without a pull to the reference a point whose advantage is 0 has no gradient, so it is not evaluated."""
        return self.beta == 0

    @property
    def copies(self) -> dict[str, Decay]:
        """None: the velocities of the rollout are recorded."""
        return {}

    @property
    def anchors(self) -> dict[str, float]:
        """The velocities that the loss needs beside the policy's, with the guidance of each."""
        return {"reference": self.guidance} if self.beta > 0 else {}

    def loss(self, models: Models, points: Moves) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each state [B], and what is worth watching.

        Before the first update the policy is what drew the samples, so the ratio is 1 by definition. How far it would
        be from 1 by the recorded velocity tells of a difference between sampling and training.
        """
        v, recorded, q, sigma = models.at("policy", points), points.known["old"], points.q, points.sigma
        v_ref = models.at("reference", points) if self.beta > 0 else None
        v_old = v.detach() if points.fresh else recorded
        loss = policy_gradient(
            v, v_old, v_ref, points.z, points.advantage, q, sigma, points.length, self.ratio, self.clip,
            self.advantage_clip, self.beta, self.divergence, points.weight, self.trust, self.outward,
        )  # fmt: skip
        watched = self.watched(v.detach(), v_old, v_ref, points)
        if points.fresh:
            apart = log_ratio(v.detach(), recorded, points.z, q, sigma, self.ratio)
            watched["first_ratio_max"] = (apart.abs() * (points.weight > 0)).amax(1)
            if self.clip is not None:
                watched["first_ratio_in_clips_max"] = watched["first_ratio_max"] / log_bounds(self.clip)[1]
            if self.trust is not None:
                watched["first_nats_in_trust_max"] = step_nats(v.detach(), recorded, q, sigma) / self.trust
        return loss, watched

    def remarks(self, updates: int) -> list[str]:
        """Warnings about a run with so many optimiser steps per rollout."""
        said = []
        if self.trust is not None and updates == 1:
            said.append(
                "with one optimiser step per rollout the policy is still what drew the samples, so --algorithm.trust "
                "stops nothing: use --updates-per-iteration 2 or more"
            )
        if self.points.weight == "pull" and self.ratio not in ("gaussian", "sum"):
            said.append(
                f"--algorithm.points.weight pull makes the gradients of all steps equally large with ratio gaussian or "
                f"sum, but not with {self.ratio}: use points.weight even, or per-time with guard"
            )
        if self.points.weight == "pull" and self._alone and not self._per_prompt:
            said.append(
                "all images of an iteration have the same random step, so --algorithm.points.weight pull is 1: use "
                "--algorithm.rollout.window.order per-prompt"
            )
        if self.points.extremes is not None and self.beta > 0 and self.rollout.leaves > 1:
            said.append(
                "beta above 0 pulls every state to the reference, so states that --algorithm.points.extremes leaves "
                "out are evaluated nevertheless: set --algorithm.beta 0 to save their passes"
            )
        return said

    @property
    def _per_prompt(self) -> bool:
        """Whether prompts have different random steps."""
        return isinstance(self.rollout, Chain) and self.rollout.window.order == "per-prompt"

    @property
    def _alone(self) -> bool:
        """Whether a chain has a single random step."""
        return isinstance(self.rollout, Chain) and self.rollout.window.size == 1

    def stopped(self, v: Tensor, v_old: Tensor, points: Moves) -> Tensor:
        """The steps without a gradient, because they have gone too far, bool [B, C]."""
        a, q, sigma = points.advantage, points.q, points.sigma
        if self.trust is not None:
            return beyond_trust(v, v_old, points.z, a, q, sigma, self.trust, self.outward)
        low, high = log_bounds(inf if self.clip is None else self.clip)
        each = log_ratio(v, v_old, points.z, q, sigma, self.ratio)
        return ((each > high) & (a > 0)) | ((each < low) & (a < 0))

    def watched(self, v: Tensor, v_old: Tensor, v_ref: Tensor | None, points: Moves) -> dict[str, Tensor]:
        """Log ratio, shares of steps that are stopped, pull on v, KL, divergence: over all steps, and of each."""
        q, sigma = points.q.double(), points.sigma.double()
        each = log_ratio(v, v_old, points.z, q, sigma, self.ratio)
        there, a = points.weight > 0, points.advantage.clamp(-self.advantage_clip, self.advantage_clip)
        alpha, _ = ratio_scales(self.ratio, q, sigma, v[0].numel())
        many = there.sum(1).clamp(min=1)  # 0 where all steps of a state are left out
        stopped = self.stopped(v, v_old, points) & there
        push = ((points.weight * a).to(v.dtype)[..., None] * points.z.flatten(2)).sum(1)
        found = {
            "log_ratio": (each * there).sum(1) / many,
            "clipped_up": (stopped & (a > 0)).sum(1) / many,
            "clipped_down": (stopped & (a < 0)).sum(1) / many,
            "pull": alpha.abs() * push.norm(dim=1) / push.shape[1],  # the gradient on v, where no step is stopped
        }
        if self.trust is not None:
            found["stopped"] = stopped.sum(1) / many
            found["step_nats"] = step_nats(v, v_old, q, sigma)
        if v_ref is not None:
            omega = divergence_scale(self.divergence, q, sigma, points.length)
            found["divergence"] = omega * mean((wide(v) - wide(v_ref)).double() ** 2)
        by_step = {
            f"{name}@{number}": value[points.step == number]
            for number in points.step.unique().tolist()
            for name, value in found.items()
        }
        return {**found, **by_step}
