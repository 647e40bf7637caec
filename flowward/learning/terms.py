"""Pieces that several losses share. Tensors [B, ...], numbers [B]."""

from __future__ import annotations

from math import log1p

import torch
from torch import Tensor

from ..process.flow import mean, wide
from .points import Points

Watched = dict[str, Tensor]  # metrics of points, [B] each
EARLIEST = 0.05  # the smallest time that counts in a KL in nats
ROUNDING = 3e-6  # nats per number of a sample that rounding to bf16 looks like (relative 2^-9, at velocities of size 1)


def error_scale(residual: Tensor, floor: float = 1e-5) -> Tensor:
    """mean|residual|, detached, float64, at least `floor`, [B]: what DiffusionNFT and its kin divide a square by.

    It makes the size of a gradient independent of how noisy a point is.
    """
    return mean(residual.detach().double().abs()).clamp_min(floor)


def tether(v: Tensor, anchor: Tensor | None, weight: float | Tensor) -> Tensor:
    """weight * mean((v - anchor)^2), [B]; 0 where there is no anchor."""
    if anchor is None:
        return v.new_zeros(len(v))
    return weight * mean((v - wide(anchor)) ** 2)


def detached(v: Tensor, push: Tensor) -> Tensor:
    """mean((v - sg[v - push])^2), [B]: its gradient is 2 push / N, and its value mean(push^2).

    For squares with weights of any sign, whose own value has no lower bound and so cannot be read as a loss.
    """
    return mean((v - v.detach() + push.detach()) ** 2)


def matching(v: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """m = mean((v - (eps - x0))^2), [B]: the flow-matching error of a point."""
    return mean((v - (eps - x0)) ** 2)


def log_bounds(low: float, high: float | None = None) -> tuple[float, float]:
    """log(1 - low) and log(1 + high), between which a log ratio counts; `high` is `low` unless given."""
    return log1p(-min(low, 1 - 1e-12)), log1p(low if high is None else high)


def clipped_ratio(log_ratio: Tensor, advantage: Tensor, low: float, high: float | None = None) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - low, 1 + high)) with rho = exp(log_ratio): PPO's surrogate, of any shape.

    The ratio is clipped in logarithms, so that a ratio beyond the clip cannot overflow, and so that a clip of 2e-6,
    of which 1 + 2e-6 keeps 4 bits in float32, stays exact. `high` is `low` unless given (Schulman et al., 2017,
    arXiv:1707.06347, Eq. 7; asymmetric: DAPO, arXiv:2503.14476).
    """
    lowest, highest = log_bounds(low, high)
    rho = torch.where(advantage < 0, log_ratio.clamp_min(lowest), log_ratio.clamp_max(highest)).exp()
    return -advantage * rho


def masked_ratio(log_ratio: Tensor, advantage: Tensor, stopped: Tensor) -> Tensor:
    """-A rho, and 0 without a gradient where `stopped` (bool) or where A is 0, of any shape.

    The ratio of a stopped step is not computed, so one that overflows leaves no NaN (Ping et al., 2026,
    arXiv:2606.11025, Eq. 17 and 18).
    """
    silent = stopped | (advantage == 0)
    rho = torch.where(silent, 0.0, log_ratio).exp()
    return torch.where(silent, 0.0, -advantage * rho)


def group_sum(values: Tensor, group: Tensor) -> Tensor:
    """The sum over each row's group, [B]; gradients flow."""
    _, index = group.unique(return_inverse=True)
    return values.new_zeros(int(index.max()) + 1).index_add(0, index, values)[index]


def nats(v: Tensor, other: Tensor, t: Tensor, width: Tensor) -> Tensor:
    """D width (1 - t)/t mean((v - other)^2), [B], and 0 below t = EARLIEST: its mean over points is a KL in nats.

    For two calibrated flows, KL(p || q) is D times the integral over t of (1 - t)/t E[mean((v_p - v_q)^2)], at x_t of
    p. It is the KL of whole samples, D numbers each. `width` is 1 / density of t (Times.width). Points below EARLIEST
    are left out: 1/t would let a few of them decide, and they hold little of the integral, because v_p - v_q is
    proportional to t there.

    The difference is taken in float32, as the velocities come. Those of a network in bf16 are rounded: that alone is a
    KL of about D * ROUNDING.
    """
    early = t.double() < EARLIEST
    weight = torch.where(early, 0.0, width.double() * (1 - t.double()) / t.double().clamp_min(EARLIEST))
    d = (wide(v.detach()) - wide(other)).flatten(1)
    return weight.to(d.dtype) * (d**2).sum(1)


def divergences(points: Points, v: Tensor, v_old: Tensor | None, v_ref: Tensor | None, calibrated: bool) -> Watched:
    """KL in nats, from velocities [B, ...]: rows whose mean is the KL, as many as points of the policy's own samples.

    `old_nats` is KL(old || policy), and `reference_nats` the KL of `old` (without it: of the policy) from the
    reference. Nothing if the times have no known density, or if the velocities are not `calibrated`: those of guidance
    are not E[u | x_t] of any samples. Given images do not count: the policy did not draw them.
    """
    own = ~points.exemplar
    if points.width is None or not calibrated or not own.any():
        return {}
    t, width, found = points.t[own], points.width[own], Watched()
    if v_old is not None:
        found["old_nats"] = nats(v[own], v_old[own], t, width)
    if v_ref is not None:
        found["reference_nats"] = nats((v if v_old is None else v_old)[own], v_ref[own], t, width)
    return found


def departure(points: Points, v: Tensor, v_old: Tensor | None, v_ref: Tensor | None, calibrated: bool) -> Watched:
    """How far the policy has left `old` and the reference, and the noise of a point, from velocities [B, ...].

    `distance` is mean(d^2), d = v - v_old; `residual` is mean(e^2), e = u - v_old. Without `old`, e is u - v. For the
    rest see `divergences`.
    """
    v, x0, eps = wide(v.detach()), wide(points.x0), wide(points.eps)
    found = divergences(points, v, v_old, v_ref, calibrated)
    if v_old is None:
        return {"residual": matching(v, x0, eps), **found}
    return {"distance": mean((v - wide(v_old)) ** 2), "residual": matching(wide(v_old), x0, eps), **found}
