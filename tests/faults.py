"""Faults of a machine, injected: full disks, folders that cannot be written, clocks that jump, memory that runs out.

Every one yields a list that gets an entry whenever the fault strikes, so that a test sees that it did.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from flowward.algorithms import AdvantageFlow

Strikes = list[str]


@contextmanager
def full_disk(pattern: str, first: int = 1) -> Iterator[Strikes]:
    """Writing files whose path fits the pattern fails from the `first` time on, with some bytes written before."""
    with _failing(pattern, errno.ENOSPC, first) as struck:
        yield struck


@contextmanager
def read_only(folder: str) -> Iterator[Strikes]:
    """Nothing in the folder can be written, made, renamed or deleted, as on a file system that is mounted read-only."""
    with pytest.MonkeyPatch.context() as patch, _failing(f"{folder}*", errno.EROFS) as struck:
        for name in ("mkdir", "replace", "rename", "unlink", "rmdir"):
            patch.setattr(os, name, _refusing(getattr(os, name), f"{folder}*", struck))
        patch.setattr(os, "access", _accessible(os.access, f"{folder}*", struck))
        yield struck


def _refusing(original: Callable[..., Any], pattern: str, struck: Strikes) -> Callable[..., Any]:
    def refuse(path: Any, *rest: Any, **more: Any) -> Any:
        exists = original.__name__ == "mkdir" and os.path.isdir(path)  # this is said first
        if not exists and _fits(path, pattern):
            struck.append(str(path))
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return original(path, *rest, **more)

    return refuse


def _accessible(original: Callable[..., bool], pattern: str, struck: Strikes) -> Callable[..., bool]:
    def ask(path: Any, mode: int, **more: Any) -> bool:
        if mode & os.W_OK and _fits(path, pattern):
            struck.append(str(path))
            return False
        return original(path, mode, **more)

    return ask


def _fits(path: Any, pattern: str) -> bool:
    return isinstance(path, (str, os.PathLike)) and fnmatch(os.path.relpath(path), pattern)


@contextmanager
def _failing(pattern: str, code: int, first: int = 1) -> Iterator[Strikes]:
    """Python's files and those of safetensors, which writes them itself and has its own kind of error."""
    struck, times, opened, written = Strikes(), count(1), io.open, safetensors.torch.serialize_file

    def strikes(path: Any) -> bool:
        if not _fits(path, pattern) or next(times) < first:
            return False
        struck.append(str(path))
        return True

    def open_(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if not set(mode) & set("wax") or not strikes(file):
            return opened(file, mode, *rest, **more)
        if code != errno.ENOSPC:
            raise OSError(code, os.strerror(code), str(file))
        opened(file, mode).close()  # the name still fits on the disk
        return opened("/dev/full", mode.replace("x", "w"), *rest, **more)  # the system's own full disk

    def serialize(tensors: Any, file: Any, *rest: Any, **more: Any) -> None:
        if strikes(file):
            if code == errno.ENOSPC:
                Path(file).write_bytes(b"half")
            raise SafetensorError(f"Error while serializing: I/O error: {os.strerror(code)} (os error {code})")
        written(tensors, file, *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builtins, "open", open_)
        patch.setattr(io, "open", open_)
        patch.setattr(safetensors.torch, "serialize_file", serialize)
        yield struck


@contextmanager
def clock(name: str, *hours: float) -> Iterator[Strikes]:
    """time.NAME is wrong by so many hours, in turn; the last number stays."""
    struck, number, true = Strikes(), count(), getattr(time, name)

    def wrong() -> float:
        struck.append(name)
        off: float = true() + 3600 * hours[min(next(number), len(hours) - 1)]
        return off

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, name, wrong)
        yield struck


@contextmanager
def loss(change: Callable[[Tensor], Tensor], *calls: int) -> Iterator[Strikes]:
    """The loss is changed in these calls, counted from 1; one of AdvantageFlow, in one microbatch per iteration."""
    struck, number, original = Strikes(), count(1), AdvantageFlow.loss

    def changed(self: AdvantageFlow, models: Any, points: Any) -> Any:
        found, watched = original(self, models, points)
        if (now := next(number)) not in calls:
            return found, watched
        struck.append(f"loss {now}")
        return change(found), watched

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AdvantageFlow, "loss", changed)
        yield struck


def nan(found: Tensor) -> Tensor:
    return found * float("nan")


def no_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has a total capacity of 1 GiB")


@contextmanager
def replaced(owner: Any, name: str, new: Callable[..., Any], *calls: int) -> Iterator[Strikes]:
    """A function is replaced in these calls, counted from 1."""
    struck, number, original = Strikes(), count(1), getattr(owner, name)

    def either(*words: Any, **more: Any) -> Any:
        if (now := next(number)) not in calls:
            return original(*words, **more)
        struck.append(f"{name} {now}")
        return new(*words, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, either)
        yield struck
