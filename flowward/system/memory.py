"""Out of memory, in one sentence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch


class OutOfMemory(RuntimeError):
    """This process has too little memory; others of the run may have enough."""


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the GPU or the CPU has no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in str(error)


def room(device: torch.device) -> int | None:
    """Bytes that are free on a GPU, or kept by torch for later; None where it cannot be told."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def release() -> None:
    """Give memory that torch keeps for later back to the GPU, where there is one."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def explained(what: str | Callable[[], str]) -> Iterator[None]:
    """Inside, errors about memory become the sentence 'out of memory ' followed by `what`, or by what it returns.

    Raises:
        OutOfMemory: the GPU or the CPU has no memory left.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise OutOfMemory(f"out of memory {what if isinstance(what, str) else what()}") from error
