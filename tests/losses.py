"""Every loss without likelihoods, by name, and random points to evaluate it on."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flowward.algorithms.awm import log_likelihood
from flowward.algorithms.flowawr import Form
from flowward.algorithms.objectives import (
    advantageflow,
    awm,
    crd,
    dgpo,
    diffusion_nft,
    dpo,
    fdfo,
    flowawr,
    ram,
    rvm,
    vgrpo,
)
from flowward.process.flow import interpolate

Loss = Callable[..., Tensor]

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples() -> dict[str, Tensor]:
    """Six points of shape [2, 3], not far off policy, in three groups of a better and a worse one."""
    v, v_old, v_ref, x0, eps, delta = real(6, 6, 2, 3)
    t = torch.tensor([0.1, 0.95, 0.3, 0.8, 1.0, 0.5], dtype=torch.float64)
    advantage = torch.tensor([-4.0, 2.5, -1.0, 0.8, 4.5, -0.3], dtype=torch.float64)
    tensors = {"v": v_old + v / 4, "v_old": v_old, "v_ref": v_ref, "x0": x0, "eps": eps, "delta": delta / 3}
    group = torch.tensor([7, 7, -2, -2, 0, 0])
    return {**tensors, "x_t": interpolate(x0, eps, t), "t": t, "advantage": advantage, "group": group}


def on_policy() -> dict[str, Tensor]:
    """`samples`, with equal velocities of policy, old policy and reference."""
    s = samples()
    return {**s, "v": s["v_old"], "v_ref": s["v_old"]}


def velocity(s: dict[str, Tensor]) -> Tensor:
    return s["eps"] - s["x0"]


def evaluate(function: Loss, s: dict[str, Any], **setting: Any) -> Tensor:
    """The loss, [B], given those of the tensors that it takes."""
    takes = inspect.signature(function).parameters
    return function(**{**{name: tensor for name, tensor in s.items() if name in takes}, **setting})


def gradient_at(v: Tensor, loss: Callable[[Tensor], Tensor]) -> Tensor:
    """Of the sum over points, [B, ...]."""
    v = v.clone().requires_grad_()
    return torch.autograd.grad(loss(v).sum(), v)[0]


def gradient(function: Loss, s: dict[str, Tensor], **setting: Any) -> Tensor:
    """Of the sum over points with respect to v, [B, ...]."""
    return gradient_at(s["v"], lambda v: evaluate(function, {**s, "v": v}, **setting))


def awm_off_policy(
    v: Tensor, v_old: Tensor, x0: Tensor, eps: Tensor, t: Tensor, advantage: Tensor, weighting: Any, clip: float = 1.0
) -> Tensor:
    """AWM on samples of the running average, without tethers."""
    known = log_likelihood(v_old, x0, eps, t, weighting)
    return awm(v, None, None, eps, t, x0, advantage, clip=clip, weighting=weighting, logp_old=known)


def averaged(s: dict[str, Any], **setting: Any) -> Tensor:
    """V-GRPO with the rows of a group as the draws of an image."""
    return evaluate(vgrpo, {**s, "image": s["group"]}, clip=0.1, **setting)


WEIGHTINGS = ("uniform", "t", "t2", "huber", "ghuber")
MODES = ("all", "positive", "negative", "one-hot", "sign")
FORMS: tuple[Form, ...] = ("released", "velocity", "exact")
LOSSES: dict[str, Loss] = {
    "advantageflow": partial(evaluate, advantageflow),
    "advantageflow scaled": partial(evaluate, advantageflow, denominator=True),
    "advantageflow velocity": partial(evaluate, advantageflow, space="velocity"),
    **{f"flowawr {form}": partial(evaluate, flowawr, form=form) for form in FORMS},
    **{f"nft {mode}": partial(evaluate, diffusion_nft, mode=mode) for mode in MODES},
    "nft bare": partial(evaluate, diffusion_nft, denominator=False, beta=0.1),
    **{f"awm {w}": partial(evaluate, awm, weighting=w) for w in WEIGHTINGS},
    **{f"awm {w} off policy": partial(evaluate, awm_off_policy, weighting=w) for w in WEIGHTINGS},
    "fdfo": partial(evaluate, fdfo, k_ref=0.1),
    "dgpo": partial(evaluate, dgpo, beta=2.0, clip=0.5),
    "crd": partial(evaluate, crd, hold=0.2),
    "crd bare": partial(evaluate, crd, denominator=False),
    "dpo": partial(evaluate, dpo, beta=2.0),
    "advantageflow signed": partial(evaluate, advantageflow, gamma=0.0, signed=True),
    "ram": partial(evaluate, ram, m=2.0),
    "ram old": partial(evaluate, ram, m=2.0, residual="old"),
    "rvm": partial(evaluate, rvm, beta=0.3),
    **{f"vgrpo {scale}": partial(averaged, scale=scale, beta=0.3) for scale in ("own", "old")},
}


def loss_and_gradient(name: str, s: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    v = s["v"].clone().requires_grad_()
    loss = LOSSES[name]({**s, "v": v})
    return loss.detach(), torch.autograd.grad(loss.sum(), v)[0]
