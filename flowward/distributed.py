"""Several processes, one run: each does a share of the work, and all hold the same weights.

Images and training points are functions of their number, so which process makes one changes nothing. After the rollout
every process knows all samples; gradients are added up before each optimiser step. Without other processes all of this
is the identity. Processes are torch's own: `torchrun`, or `flowward train --processes N`, which calls it.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that one process may wait for another: encoding prompts takes its time


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined() -> Iterator[int]:
    """Inside, this process is one of those that torchrun started, if it did; yields how many there are.

    All but the first print nothing.

    Raises:
        ValueError: there are more processes than CUDA devices.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield count()
        return
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        _refuse_many(local + 1)
        torch.cuda.set_device(local)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    said = sys.stdout
    try:
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process
        yield count()
    finally:
        sys.stdout = said
        dist.destroy_process_group()


def _refuse_many(processes: int) -> None:
    if processes > (devices := torch.cuda.device_count()):
        raise ValueError(f"{processes} processes need as many CUDA devices, here are {devices}")


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `flowward WORDS` in so many processes on this machine. Returns the exit code.

    Raises:
        ValueError: there are too few CUDA devices.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main

    if torch.cuda.is_available():
        _refuse_many(processes)
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # a process says itself why it failed
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    before = signal.signal(signal.SIGINT, lambda *_: None)  # a terminal sends it to all processes: they know what to do
    how = ["--standalone", f"--nproc-per-node={processes}", "--signals-to-handle=SIGTERM"]
    try:
        main([*how, "-m", "flowward", *words])
    except ChildFailedError as error:
        return max(failure.exitcode for failure in error.failures.values())
    finally:
        signal.signal(signal.SIGINT, before)
    return 0


@contextmanager
def first() -> Iterator[None]:
    """The first process goes in alone; the others follow when it is done."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and count() > 1:
        dist.barrier()


def share(rows: Tensor, unit: int = 1) -> Tensor:
    """This process's part of rows [n], consecutive, in whole units; the parts differ by one unit at most."""
    return rows.view(-1, unit).tensor_split(count())[rank()].flatten()


def everyone(value: T) -> list[T]:
    """What each process holds, in their order: a tensor, or a dataclass of tensors, mappings and other values.

    Tensors may differ in their sizes, and stay on their devices; of other values every process has to hold the same.
    """
    if count() == 1:
        return [value]
    mine = list(_tensors(value))
    shapes: list[Any] = [None] * count()
    dist.all_gather_object(shapes, [tuple(tensor.shape) for tensor in mine])
    found: list[list[Tensor]] = [[] for _ in shapes]
    for number, tensor in enumerate(mine):
        sizes = [torch.Size(shape[number]) for shape in shapes]
        longest = max(size.numel() for size in sizes)
        padded = tensor.new_zeros(longest)
        padded[: tensor.numel()] = tensor.flatten()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded)
        for each, part, size in zip(found, parts, sizes, strict=True):
            each.append(part[: size.numel()].view(size))
    return [_rebuilt(value, iter(tensors)) for tensors in found]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif is_dataclass(value):
        for each in fields(value):
            yield from _tensors(getattr(value, each.name))


def _rebuilt(value: Any, tensors: Iterator[Tensor]) -> Any:
    if isinstance(value, Tensor):
        return next(tensors)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _rebuilt(getattr(value, each.name), tensors) for each in fields(value)})
    return value


def messages(text: str | None) -> list[str]:
    """What any process has to say, in their order."""
    if count() == 1:
        return [text] if text else []
    found: list[str | None] = [None] * count()
    dist.all_gather_object(found, text)
    return [each for each in found if each]


def any_of(condition: bool) -> bool:
    """Whether it holds in any process."""
    return bool(messages("yes" if condition else None))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Each becomes its sum over the processes, the same bits in all of them."""
    if count() > 1:
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
            work.wait()


def merged(figures: Mapping[str, float], combine: Any = sum) -> dict[str, float]:
    """Figures of all processes under their names; a process need not have all of them."""
    if count() == 1:
        return dict(figures)
    every: list[Any] = [None] * count()
    dist.all_gather_object(every, dict(figures))
    names = dict.fromkeys(name for each in every for name in each)
    return {name: combine([each[name] for each in every if name in each]) for name in names}
