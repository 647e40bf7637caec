"""Whether a model's velocity is E[u | x_t] of its own samples: a test that needs no name of a model.

Noise finished samples x0 again, x_t = (1 - t) x0 + t eps with u = eps - x0, and take the slope of u on v:

    b(t) = E<u, v> / E<v, v>

If v = E[u | x_t], b is 1 at every t, since <u - v, v> is 0 on average. A step-distilled network returns the average
velocity of a jump, and b is far from 1. So it is if the sampler's steps are too long for its samples to follow v.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..models.diffusers import DiffusersPolicy
from ..process.flow import interpolate
from ..process.noise import Noise
from ..process.policy import Condition, Policy, Velocity
from ..process.rollout import Sampler, bound_to
from ..prompts import Prompt
from .check import Check, number
from .model import TEXTS, asked_of

TIMES = (0.2, 0.5, 0.8, 0.95)
SAMPLES, STEPS, AT_ONCE = 64, 40, 8
JUMPS = 4  # of a model with two times, in the place of STEPS


@torch.no_grad()
def slope(velocity: Velocity, x0: Tensor, eps: Tensor, t: float, condition: Condition) -> tuple[float, float]:
    """The sums of <u, v> and <v, v> over samples x0 [B, ...] noised with eps; b(t) is their ratio."""
    at = torch.full((len(x0),), t, dtype=x0.dtype, device=x0.device)
    v = velocity(interpolate(x0, eps, at), at, condition).to(x0.dtype)
    return ((eps - x0) * v).sum().item(), (v * v).sum().item()


def slopes(policy: Policy, prompts: Sequence[Prompt], samples: int = SAMPLES, steps: int = STEPS) -> dict[float, float]:
    """b(t) of the model, on its own samples; `steps` are those of its sampler."""
    sampler = Sampler(JUMPS, grid="model", solver="jump") if policy.two_times else Sampler(steps, grid="model")
    draw, velocity = bound_to(policy, sampler), policy.under("policy")
    sums = {t: (0.0, 0.0) for t in TIMES}
    condition = policy.encode(list(prompts))
    for part in torch.arange(samples).split(AT_ONCE):
        rows = condition[part % len(prompts)]
        noise = Noise(policy.latent_shape, tuple(("slope", number) for number in part.tolist()), policy.device)
        x0 = draw(velocity, rows, noise).x0
        for place, t in enumerate(TIMES):
            more = slope(velocity, x0, noise.step(place), t, rows)
            sums[t] = (sums[t][0] + more[0], sums[t][1] + more[1])
    return {t: uv / vv if vv else float("nan") for t, (uv, vv) in sums.items()}


def checks(policy: DiffusersPolicy) -> Iterator[Check]:
    """The slopes as lines of the report; none of them can be broken."""
    name = type(policy.family.pipe).__name__
    with tempfile.TemporaryDirectory() as folder:
        found = slopes(policy, asked_of(policy, TEXTS, Path(folder)))
    for t, b in found.items():
        law = f"slope of u on v at t = {t:g}, on its own samples (1: a flow, else distilled or too few steps)"
        yield replace(number(law, "docs/few_step.md", b, 1, float("inf")), algorithm=name, part="protocol")
