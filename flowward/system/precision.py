"""The precision of networks; solver states and losses are always float32."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch  # within functions at run time: what names a precision in its options computes nothing

Precision = Literal["bf16", "float32"]
Wish = Literal["auto", "bf16", "float32"]
VARIABLE = "FLOWWARD_CPU_PRECISION"  # environment variable: what `auto` means on the CPU, whatever processor it is


def native() -> Precision:
    """bf16 if this processor supports it (AVX-512 BF16 or AMX), otherwise float32.

    Emulated bf16 takes 2 to 3 times as long as float32, native bf16 about half as long (docs/benchmarks.md).
    The environment variable FLOWWARD_CPU_PRECISION replaces the answer of the processor (docs/precision.md).

    Raises:
        ValueError: the variable is neither bf16 nor float32.
    """
    if asked := os.environ.get(VARIABLE):
        if asked not in ("bf16", "float32"):
            raise ValueError(f"the environment variable {VARIABLE} must be bf16 or float32, not '{asked}'")
        return asked  # type: ignore[return-value]
    import torch

    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def resolve(wish: Wish, device: str = "cpu") -> Precision:
    """Replace `auto` by a precision: bf16 on accelerators, `native()` on the CPU; others stay the same."""
    if wish != "auto":
        return wish
    return native() if device == "cpu" else "bf16"


def autocast(precision: Precision, device: str = "cpu", cached: bool = True) -> torch.autocast:
    """The autocast context to run networks in, for this device type; it may keep weights that it has `cached`."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16", cache_enabled=cached)
