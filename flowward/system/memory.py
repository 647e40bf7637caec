"""Out of memory, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class OutOfMemory(RuntimeError):
    """This process has too little memory; others of the run may have enough."""


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Inside, errors about memory become the sentence 'out of memory ' followed by `what`.

    Raises:
        OutOfMemory: the GPU or the CPU has no memory left.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise OutOfMemory(f"out of memory {what}") from error
