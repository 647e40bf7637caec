"""Pieces that several losses share. Tensors [B, ...], numbers [B]."""

from __future__ import annotations

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


def matching(v: Tensor, x0: Tensor, eps: Tensor) -> Tensor:
    """m = mean((v - (eps - x0))^2), [B]: the flow-matching error of a point."""
    return mean((v - (eps - x0)) ** 2)


def clipped_ratio(log_ratio: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """max(-A rho, -A clip(rho, 1 - clip, 1 + clip)) with rho = exp(log_ratio), [B] (PPO; Schulman et al., 2017)."""
    ratio = log_ratio.exp()
    return torch.maximum(-advantage * ratio, -advantage * ratio.clamp(1 - clip, 1 + clip))


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
