"""RMS norms in one kernel: diffusers' own takes seven (a cast, a square, a mean, ...), and a model has hundreds."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.normalization import RMSNorm
from torch import Tensor, nn
from torch.nn import functional


class FusedRMSNorm(RMSNorm):
    """diffusers' layer by torch's own function: the same in float32, one rounding less in half precision."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        held: Any = self.weight
        if held is not None and held.dtype != hidden_states.dtype:  # under autocast: its rules are for small functions
            plain: Tensor = super().forward(hidden_states)
            return plain
        return functional.rms_norm(hidden_states, tuple(self.dim), held, self.eps)


def fuse(network: nn.Module) -> None:
    """Let all RMS norms of a network be computed in one kernel each; their weights stay where they are."""
    for module in network.modules():
        if type(module) is not RMSNorm or getattr(module, "bias", None) is not None:
            continue
        if isinstance(module.dim, torch.Size) and module.dim.numel():  # Mochi's have no size: it is that of the input
            module.__class__ = FusedRMSNorm
