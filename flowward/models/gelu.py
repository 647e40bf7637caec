"""The tanh approximation of GELU in float32 on a processor: torch's own kernel computes a slow tanh.

0.5 x (1 + tanh(u)) = x sigmoid(2 u) with u = sqrt(2 / pi) (x + 0.044715 x^3) (Hendrycks and Gimpel, 2016,
arXiv:1606.08415). The sigmoid needs an exp alone, so its few passes over memory take less time than the one of the
tanh: about 0.6 of it forward, 0.85 backward (docs/notes/speed.md).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from diffusers.models.activations import GELU
from torch import Tensor, nn
from torch.nn import functional

LINEAR = 2 * math.sqrt(2 / math.pi)  # 2 u = x (LINEAR + CUBIC x^2)
CUBIC = 0.044715 * LINEAR


class TanhGELU(torch.autograd.Function):
    """x -> x sigmoid(2 u), with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        share = _share(x)
        ctx.save_for_backward(x, share)
        return x * share

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, share = ctx.saved_tensors
        inner: Tensor = torch.ops.aten.sigmoid_backward(gradient * x, share)
        return (gradient * share).addcmul_(inner, torch.addcmul(x.new_tensor(LINEAR), x, x, value=3 * CUBIC))


def _share(x: Tensor) -> Tensor:
    """sigmoid(2 u), the share of x that passes."""
    return torch.addcmul(x.new_tensor(LINEAR), x, x, value=CUBIC).mul_(x).sigmoid_()


def gelu(x: Tensor) -> Tensor:
    """GELU of float32 numbers by its tanh approximation, within a few 1e-7 of torch's.

    Compilers write a kernel of their own, so they are given torch's function.
    """
    if torch.compiler.is_compiling():
        return functional.gelu(x, approximate="tanh")
    if torch.is_grad_enabled() and x.requires_grad:
        found: Tensor = TanhGELU.apply(x)
        return found
    return _share(x).mul_(x)


class QuickGELU(GELU):
    """diffusers' layer, a projection and the tanh approximation of GELU, in float32 on a processor."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        return gelu(self.proj(hidden_states))


def quicken(network: nn.Module) -> None:
    """Let all layers of a float32 network on a processor compute GELU so; their weights stay where they are."""
    for module in network.modules():
        if type(module) is GELU and module.approximate == "tanh":
            module.__class__ = QuickGELU
