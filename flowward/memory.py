"""Too little memory, in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def explained(what: str, kind: type[Exception] = ValueError) -> Iterator[None]:
    """Inside, memory that runs out is an error of this kind: 'out of memory ' and what there was no room for.

    Raises:
        Exception: of that kind, where there was none left, on a GPU or a CPU.
    """
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)):
            raise
        raise kind(f"out of memory {what}") from error
