"""Count the memory of a computation; fake tensors without values are enough (see models/blueprint.py)."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_iter

ROUNDED = 512  # bytes: CUDA's allocator rounds up to multiples of it


class Counter(TorchDispatchMode):
    """Inside, counts the bytes of all live tensors (`now`) and their maximum (`most`).

    It counts storages, so views cost nothing, and tensors that autograd keeps for the backward pass are included. Of a
    sharded tensor it counts the shard of this process. It does not count the workspace of kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._sizes: dict[int, int] = {}  # of live storages, by address
        self._watched: Any = None

    def __enter__(self) -> Counter:
        real = torch.UntypedStorage.resize_

        def resize_(storage: torch.UntypedStorage, size: int) -> None:
            real(storage, size)
            if storage._cdata in self._sizes:
                self._now_has(storage._cdata, size)

        # FSDP frees gathered weights so; no dispatch mode sees it
        self._watched = mock.patch.object(torch.UntypedStorage, "resize_", resize_)
        self._watched.start()
        super().__enter__()
        return self

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _places(args[1]))
        found = func(*args, **(kwargs or {}))
        for each in tree_iter(found):
            for part in _plain(each):
                if part.device.type != "meta":
                    self._add(part.untyped_storage())
        return found

    def _add(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address in self._sizes:
            return
        self._sizes[address] = 0
        self._now_has(address, storage.nbytes())
        weakref.finalize(storage, self._gone, address).atexit = False

    def _now_has(self, address: int, bytes: int) -> None:
        size = -(-bytes // ROUNDED) * ROUNDED
        self.now += size - self._sizes[address]
        self._sizes[address] = size
        self.most = max(self.most, self.now)

    def _gone(self, address: int) -> None:
        self.now -= self._sizes.pop(address)

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Count these no longer: they stand for tensors in the memory of the host."""
        for each in tensors:
            for part in _plain(each):
                if (address := part.untyped_storage()._cdata) in self._sizes:
                    self._now_has(address, 0)

    def __exit__(self, *error: Any) -> None:
        gc.unfreeze()
        super().__exit__(*error)
        self._watched.stop()

    def peak(self, work: Callable[[], None]) -> float:
        """The peak number of bytes during `work` (see `fit.Peak`)."""
        gc.collect()
        gc.freeze()  # the next collection need not look at what is still there: it takes a third of a second each time
        self.most = self.now
        work()
        return self.most


def _plain(found: Any) -> Iterator[Tensor]:
    """The tensors that hold the numbers: a DTensor has the shape of the whole, and its shard inside."""
    if is_traceable_wrapper_subclass(found):
        names, _ = found.__tensor_flatten__()
        for name in names:
            yield from _plain(getattr(found, name))
    elif isinstance(found, Tensor):
        yield found


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
