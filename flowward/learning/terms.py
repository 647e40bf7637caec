"""Pieces that several losses share. Tensors [B, ...], numbers [B]."""

from __future__ import annotations

from math import log1p

import torch
from torch import Tensor

from ..process.flow import mean, wide


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


def departure(v: Tensor, v_old: Tensor | None, x0: Tensor, eps: Tensor) -> dict[str, Tensor]:
    """mean(d^2), how far the policy has left `old`, and mean(e^2), the noise that a point carries, [B] each."""
    v, x0, eps = wide(v.detach()), wide(x0), wide(eps)
    if v_old is None:
        return {"residual": matching(v, x0, eps)}
    return {"distance": mean((v - wide(v_old)) ** 2), "residual": matching(wide(v_old), x0, eps)}
