"""A count of what processes tell each other."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist


@dataclass
class Collectives:
    """Calls and bytes that this process handed to the others."""

    sums: int = 0  # of gradients
    gathers: int = 0
    summed: int = 0  # bytes
    gathered: int = 0


@contextmanager
def counted() -> Iterator[Collectives]:
    """Inside, the collectives of this process are counted."""
    found = Collectives()
    before = {name: getattr(dist, name) for name in ("all_reduce", "all_gather", "all_gather_object")}

    def all_reduce(tensor: Any, *given: Any, **named: Any) -> Any:
        found.sums, found.summed = found.sums + 1, found.summed + tensor.nbytes
        return before["all_reduce"](tensor, *given, **named)

    def all_gather(parts: Any, tensor: Any, *given: Any, **named: Any) -> Any:
        found.gathers, found.gathered = found.gathers + 1, found.gathered + tensor.nbytes
        return before["all_gather"](parts, tensor, *given, **named)

    def all_gather_object(parts: Any, value: Any, *given: Any, **named: Any) -> Any:
        found.gathers, found.gathered = found.gathers + 1, found.gathered + len(pickle.dumps(value))
        return before["all_gather_object"](parts, value, *given, **named)

    for each in (all_reduce, all_gather, all_gather_object):
        setattr(dist, each.__name__, each)
    try:
        yield found
    finally:
        for name, call in before.items():
            setattr(dist, name, call)
