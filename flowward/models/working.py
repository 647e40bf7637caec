"""Adapters in the precision of the network that they belong to, all of them at once.

The masters stay in float32, where small optimiser steps are kept. A pass needs them in bf16, and its gradients in
float32 again. Autocast does this tensor by tensor: two kernels for each, and two more in the backward pass. Here it
takes one kernel for some dozens of tensors.

Layers that read one input, such as query, key and value of an attention, share one product with all their A.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


class Common:
    """A x of layers that read the same x, as one product.

    The first layer that gets x computes it for all. Each takes its own part once, and after the last nothing is kept.
    A layer that gets another tensor computes anew, so the result does not depend on who reads what.

    Args:
        a: A of the layers, one below the other, [layers * r, in].
        layers: how many there are.
    """

    def __init__(self, a: Tensor, layers: int):
        self.a, self.layers = a, layers
        self.forget()

    def forget(self) -> None:
        self._x: Tensor | None = None
        self._version = 0
        self._parts: dict[int, Tensor] = {}

    def low(self, x: Tensor, place: int) -> Tensor:
        """A x [..., r] of the layer at this place, for x [..., in]."""
        if self.layers == 1:
            return functional.linear(x, self.a)
        if x is not self._x or place not in self._parts or self._version != _version(x):
            self._x, self._version = x, _version(x)
            self._parts = dict(enumerate(functional.linear(x, self.a).chunk(self.layers, -1)))
        found = self._parts.pop(place)
        if not self._parts:
            self.forget()
        return found


def _version(x: Tensor) -> int:
    """How often x was changed in place, where torch can tell."""
    return 0 if torch.compiler.is_compiling() or x.is_inference() else x._version


Part = tuple[Common, int, Tensor]  # of a layer: scale A of all that read its input, its place among them, and B


class Working(torch.autograd.Function):
    """scale A and B of all layers, rounded once to a dtype; the gradients of the masters are float32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, scale: float, sizes: list[int], *masters: Tensor) -> tuple[Tensor, ...]:
        """`masters`: all A, then all B; only the A are scaled, so that B (scale A) x needs no more products."""
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.sizes, ctx.dtypes = scale, sizes, [each.dtype for each in masters]
        return tuple(_rounded(masters, dtype, scale, sizes))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        sizes = [*ctx.sizes, *[1] * sum(ctx.sizes)]
        apart = [
            part
            for own, size in zip(gradients, sizes, strict=True)
            for part in (own.chunk(size) if own is not None else [None] * size)
        ]
        given = {number: own for number, own in enumerate(apart) if own is not None}
        exact = {number: torch.empty_like(own, dtype=ctx.dtypes[number]) for number, own in given.items()}
        torch._foreach_copy_(list(exact.values()), list(given.values()))
        scaled = [own for number, own in exact.items() if number < sum(ctx.sizes)]
        if ctx.scale != 1 and scaled:
            torch._foreach_mul_(scaled, ctx.scale)
        return None, None, None, *(exact.get(number) for number in range(len(apart)))


def _rounded(masters: Sequence[Tensor], dtype: torch.dtype, scale: float, sizes: Sequence[int]) -> list[Tensor]:
    """A of each group in one tensor, then B of each layer."""
    every_a, every_b = list(masters[: sum(sizes)]), list(masters[sum(sizes) :])
    firsts = [every_a[start] for start in accumulate(sizes[:-1], initial=0)]
    joined = [
        first.new_empty(size * len(first), *first.shape[1:], dtype=dtype)
        for first, size in zip(firsts, sizes, strict=True)
    ]
    alone = [torch.empty_like(each, dtype=dtype) for each in every_b]
    places = [part for own, size in zip(joined, sizes, strict=True) for part in own.chunk(size)]
    exact = every_a if scale == 1 else torch._foreach_mul(every_a, scale)
    torch._foreach_copy_([*places, *alone], [*exact, *every_b])
    return [*joined, *alone]


def working(
    masters: Sequence[Tensor], dtype: torch.dtype, scale: float, gradients: bool, groups: Sequence[Sequence[int]]
) -> list[Part]:
    """What the layers use in a pass: scale A and B, in this dtype.

    Args:
        masters: A [r, in] and B [out, r] of each layer in turn, float32.
        gradients: whether gradients flow back to the masters.
        groups: the numbers of the layers that read one input; each layer is in one group.
    """
    sizes = [len(group) for group in groups]
    ordered = [*(masters[2 * number] for group in groups for number in group), *masters[1::2]]
    if gradients:
        made: Sequence[Tensor] = Working.apply(dtype, scale, sizes, *ordered)
    else:
        with torch.no_grad():
            made = _rounded(ordered, dtype, scale, sizes)
    parts = dict[int, Part]()
    for group, a in zip(groups, made, strict=False):
        common = Common(a, len(group))
        parts.update((number, (common, place, made[len(groups) + number])) for place, number in enumerate(group))
    return [parts[number] for number in range(len(parts))]
