"""Too little memory, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OutOfMemory(RuntimeError):
    """In this process; others that share a run may have enough."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Inside, memory that runs out is 'out of memory ' and what there was no room for.

    Raises:
        OutOfMemory: there was none left, on a GPU or a CPU.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise OutOfMemory(f"out of memory {what}") from error
