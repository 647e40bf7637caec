"""Where each number of a tensor comes from: found by giving a function tensors of known numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

BASE = 8  # digits of a place; small enough to be exact in half precision, after a scale and a shift


class NotElementwise(ValueError):
    """A function is more than a choice of numbers, each scaled and shifted."""


@dataclass
class Map:
    """y = scale x[index] + shift, number by number; y is `shift` where the index is -1."""

    index: Tensor  # of the shape of y: places in the flattened x
    scale: Tensor
    shift: Tensor
    shape: tuple[int, ...]  # of x

    def __call__(self, x: Tensor, shift: Tensor | None = None) -> Tensor:
        """y [B, ...] of x [B, *shape]; another `shift` [B, ...] for the numbers that are not of x."""
        flat = x.flatten(1)
        if self.plain:
            return flat.reshape(len(x), *self.index.shape)
        taken = flat[:, self.index.clamp(min=0).flatten().to(x.device)].reshape(len(x), *self.index.shape)
        rest = self.shift.to(x) if shift is None else shift.to(x)
        return torch.where(self.index.to(x.device) < 0, rest, taken * self.scale.to(x) + self.shift.to(x))

    @cached_property
    def plain(self) -> bool:
        """Whether y is x in another shape."""
        flat = self.index.flatten()
        same = torch.equal(flat, torch.arange(len(flat), device=flat.device))
        return same and self.whole and bool((self.scale == 1).all()) and not self.shift.any()

    @property
    def whole(self) -> bool:
        """Whether every number of x is in y once, and nothing else is."""
        flat = self.index.flatten()
        n = torch.Size(self.shape).numel()
        return len(flat) == n and torch.equal(flat.sort().values, torch.arange(n, device=flat.device))

    def back(self, y: Tensor) -> Tensor:
        """x [B, *shape] of y [B, ...], if the map is `whole`."""
        flat = ((y - self.shift.to(y)) / self.scale.to(y)).flatten(1)
        x = torch.empty_like(flat)
        x[:, self.index.flatten().to(y.device)] = flat
        return x.reshape(len(y), *self.shape)


def found(function: Callable[[Tensor], Tensor], like: Tensor) -> Map:
    """The map that a function of a tensor like `like` [1, ...] is.

    Raises:
        NotElementwise: it is more than that.
    """
    shape, n = tuple(like.shape[1:]), like[0].numel()
    zero = function(torch.zeros_like(like)).double()
    scale = function(torch.ones_like(like)).double() - zero
    from_x = scale.abs() > 1e-6
    safe = torch.where(from_x, scale, torch.ones_like(scale))
    index = torch.zeros_like(scale, dtype=torch.long)
    places, value = torch.arange(n, device=like.device), 1
    while value < n:
        digit = (places // value % BASE).reshape(like.shape).to(like.dtype)
        index += ((function(digit).double() - zero) / safe).round().long() * value
        value *= BASE
    if bool((index < 0).any()) or bool((index[from_x] >= n).any()):
        raise NotElementwise
    index = torch.where(from_x, index, -1)
    one = Map(index, _snapped(safe, like.dtype), zero, shape)
    x = torch.randn(like.shape, generator=torch.Generator().manual_seed(1)).to(like)
    y = function(x).double()
    allowed = 1e-4 if like.dtype == y.dtype == torch.float32 else 2e-2
    if (one(x.double()).reshape(y.shape) - y).norm() > allowed * (y.norm() + 1e-6):
        raise NotElementwise
    return one


def _snapped(scale: Tensor, dtype: torch.dtype) -> Tensor:
    """1 and -1 where rounding hides them."""
    near = 1e-5 if dtype == torch.float32 else 4e-3
    for whole in (1.0, -1.0):
        scale = torch.where((scale - whole).abs() < near, torch.full_like(scale, whole), scale)
    return scale
