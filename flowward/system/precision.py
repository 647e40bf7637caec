"""In what precision networks are evaluated; solver states and losses are float32 either way."""

from __future__ import annotations

from typing import Literal

import torch

Precision = Literal["bf16", "float32"]
Wish = Literal["auto", "bf16", "float32"]


def native() -> Precision:
    """bf16 where this processor multiplies it (AVX-512 BF16 or AMX), otherwise float32.

    Emulated, bf16 takes 2 to 3 times as long as float32; native, about half as long (docs/benchmarks.md).
    """
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "float32"


def resolve(wish: Wish, device: str = "cpu") -> Precision:
    """What `auto` is on a kind of device, here: bf16 on every accelerator; the others are as they are."""
    if wish != "auto":
        return wish
    return native() if device == "cpu" else "bf16"


def autocast(precision: Precision, device: str = "cpu") -> torch.autocast:
    """The context that networks are evaluated in, on a kind of device."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")
