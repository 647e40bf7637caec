"""Adapters in the precision of the network that they belong to, all of them at once.

The masters stay in float32, where small optimiser steps are kept. A pass needs them in bf16, and its gradients in
float32 again. Autocast does this tensor by tensor: two kernels for each, and two more in the backward pass. Here it
takes one kernel for some dozens of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class Working(torch.autograd.Function):
    """scale A and B of all layers, rounded once to a dtype; the gradients of the masters are float32."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, scale: float, *masters: Tensor) -> tuple[Tensor, ...]:
        """`masters`: A, B, A, B, ...; only the A are scaled, so that B (scale A) x needs no more products."""
        ctx.set_materialize_grads(False)
        ctx.scale, ctx.dtypes = scale, [each.dtype for each in masters]
        return tuple(_rounded(masters, dtype, scale))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = {number: own for number, own in enumerate(gradients) if own is not None}
        exact = {number: torch.empty_like(own, dtype=ctx.dtypes[number]) for number, own in given.items()}
        torch._foreach_copy_(list(exact.values()), list(given.values()))
        scaled = [own for number, own in exact.items() if number % 2 == 0]
        if ctx.scale != 1 and scaled:
            torch._foreach_mul_(scaled, ctx.scale)
        return None, None, *(exact.get(number) for number in range(len(gradients)))


def _rounded(masters: Sequence[Tensor], dtype: torch.dtype, scale: float) -> list[Tensor]:
    made = [torch.empty_like(each, dtype=dtype) for each in masters]
    exact = list(masters)
    if scale != 1:
        exact[::2] = torch._foreach_mul(exact[::2], scale)
    torch._foreach_copy_(made, exact)
    return made


def working(masters: Sequence[Tensor], dtype: torch.dtype, scale: float, gradients: bool) -> list[Tensor]:
    """The tensors that a pass uses: scale A and B of each layer in turn, in this dtype.

    Args:
        masters: A [r, in] and B [out, r] of each layer in turn, float32.
        gradients: whether gradients flow back to the masters.
    """
    if gradients:
        return list(Working.apply(dtype, scale, *masters))
    with torch.no_grad():
        return _rounded(masters, dtype, scale)
