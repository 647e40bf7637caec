"""How several processes share one diffusers model: whole in each, or split. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..system.errors import between

Shard = Literal["none", "node", "all"]
MOST_TOGETHER = 64  # processes that share a sequence


@dataclass(frozen=True)
class Layout:
    """How several processes share a diffusers model (not the built-in one). No results change."""

    shard: Shard = "none"
    """split the weights among `all` processes, or among those of each machine (`node`): less memory, more traffic"""
    offload_copies: bool = False
    """keep the reference and the EMA copy in the memory of the host: slower (for runs that train all weights)"""
    context_parallel: int = 1
    """this many processes share the sequence of each sample (Ulysses): for high resolution and video"""

    def __post_init__(self) -> None:
        between(self, 1, MOST_TOGETHER, "context_parallel")
