"""Count the memory of a computation; fake tensors without values are enough (see models/blueprint.py)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

ROUNDED = 512  # bytes: CUDA's allocator rounds up to multiples of it


class Counter(TorchDispatchMode):
    """Inside, counts the bytes of all live tensors (`now`) and their maximum (`most`).

    It counts storages, so views cost nothing, and tensors that autograd keeps for the backward pass are included. It
    does not count the workspace of kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _places(args[1]))
        found = func(*args, **(kwargs or {}))
        for each in tree_iter(found):
            if isinstance(each, Tensor) and each.device.type != "meta":
                self._add(each.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._seen:
            return
        size = -(-storage.nbytes() // ROUNDED) * ROUNDED
        self._seen.add(address)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, address, size).atexit = False

    def _gone(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size

    def __exit__(self, *error: Any) -> None:
        gc.unfreeze()
        super().__exit__(*error)

    def peak(self, work: Callable[[], None]) -> float:
        """The peak number of bytes during `work` (see `fit.Peak`)."""
        gc.collect()
        gc.freeze()  # the next collection need not look at what is still there: it takes a third of a second each time
        self.most = self.now
        work()
        return self.most


def _places(indices: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Boolean masks as index tensors: the number of true values must be known, even for fake tensors."""
    found: list[Tensor | None] = []
    for each in indices:
        found += [each] if each is None or each.dtype != torch.bool else each.nonzero(as_tuple=True)
    return found


@contextmanager
def counted() -> Iterator[Counter]:
    """Inside, tensors are counted as on CUDA. There autocast runs norms in float32, on the CPU it does not."""
    with (
        Counter() as counter,
        mock.patch.object(functional, "layer_norm", _in_float32(functional.layer_norm)),
        mock.patch.object(functional, "group_norm", _in_float32(functional.group_norm)),
    ):
        yield counter


def _in_float32(norm: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def called(*args: Any, **kwargs: Any) -> Tensor:
        if torch.is_autocast_enabled("cpu"):
            args = tuple(_float(each) for each in args)
            kwargs = {name: _float(each) for name, each in kwargs.items()}
        return norm(*args, **kwargs)

    return called


def _float(each: Any) -> Any:
    return each.float() if isinstance(each, Tensor) else each
