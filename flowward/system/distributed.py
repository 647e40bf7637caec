"""Several processes, one run: each does a share of the work, and all hold the same weights.

Images and training points are functions of their number, so which process makes one changes nothing. After the rollout
every process knows all samples; gradients are added up before each optimiser step. Without other processes all of this
is the identity. Processes come of `flowward train --processes N`, or of `torchrun`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from subprocess import Popen, TimeoutExpired
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = timedelta(hours=2)  # that one process may wait for another: encoding prompts takes its time
GRACE = 120.0  # seconds that the others have to save and end when one process has failed


class Deserted(RuntimeError):
    """Another process of the run has ended."""


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

    What `torchrun` does on one machine, but for signals: they reach every process, and each ends in its own time.
    (torchrun keeps Ctrl-C from its processes, and kills them 30 seconds after SIGTERM, whatever they are saving.)

    Raises:
        ValueError: there are too few CUDA devices.
    """
    if torch.cuda.is_available():
        _refuse_many(processes)
    # where they find each other
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "TORCHELASTIC_RUN_ID": "flowward",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # there is a store: the first process makes none
    }
    command = [sys.executable, "-m", "flowward", *words]
    ranks: list[Popen[bytes]] = []
    with _passed_on(ranks):
        for rank in map(str, range(processes)):
            ranks.append(Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}))
        return _ended(ranks)


@contextmanager
def _passed_on(ranks: Sequence[Popen[bytes]]) -> Iterator[None]:
    """Inside, this process does not end by SIGINT or SIGTERM: it passes them on to these, which know what to do."""

    def pass_on(number: int, frame: object) -> None:
        for rank in ranks if os.name == "posix" else ():  # elsewhere a console tells them itself
            rank.send_signal(number)

    before = {name: signal.signal(name, pass_on) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _ended(ranks: Sequence[Popen[bytes]]) -> int:
    """Wait for all of them; once one has failed, no longer than GRACE for the others. Returns the exit code of all."""
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.1)
    number, code = next(((n, rank.returncode) for n, rank in enumerate(ranks) if rank.returncode), (0, 0))
    if code < 0:  # it could not say so itself
        print(f"flowward: process {number} was ended by signal {-code}", file=sys.stderr)
    deadline = time.monotonic() + GRACE
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutExpired:  # it waits for the one that has failed
            rank.kill()
            rank.wait()
    return code if code >= 0 else 128 - code  # as a shell tells of a signal


@contextmanager
def first() -> Iterator[None]:
    """The first process goes in alone; the others follow when it is done."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def wait() -> None:
    """Until every process is here."""
    if count() > 1:
        with _others():
            dist.barrier()


@contextmanager
def _others() -> Iterator[None]:
    """Inside, this process needs the others.

    Raises:
        Deserted: one is gone; torch says so in several ways, none of which has a type of its own.
    """
    try:
        yield
    except RuntimeError as error:
        raise Deserted("another process of this run has ended, so the others cannot go on") from error


def is_news(sentence: str) -> bool:
    """Whether no process of this run has asked this before; it needs none of them, as some may have ended."""
    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(where, port, timeout=timedelta(seconds=2), wait_for_workers=False)  # type: ignore[attr-defined]
        return bool(store.add(f"said/{sentence}", 1) == 1)
    except RuntimeError:  # the store has ended: better twice than never
        return True


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
    shapes = _told([tuple(tensor.shape) for tensor in mine])
    found: list[list[Tensor]] = [[] for _ in shapes]
    for number, tensor in enumerate(mine):
        sizes = [torch.Size(shape[number]) for shape in shapes]
        longest = max(size.numel() for size in sizes)
        padded = tensor.new_zeros(longest)
        padded[: tensor.numel()] = tensor.flatten()
        parts = [torch.empty_like(padded) for _ in sizes]
        with _others():
            dist.all_gather(parts, padded)
        for each, part, size in zip(found, parts, sizes, strict=True):
            each.append(part[: size.numel()].view(size))
    return [_rebuilt(value, iter(tensors)) for tensors in found]


def _told(value: Any) -> list[Any]:
    """What each process holds, in their order: anything that can be pickled."""
    found: list[Any] = [None] * count()
    with _others():
        dist.all_gather_object(found, value)
    return found


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
    return [each for each in _told(text) if each]


def any_of(condition: bool) -> bool:
    """Whether it holds in any process."""
    return bool(messages("yes" if condition else None))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Each becomes its sum over the processes, the same bits in all of them."""
    if count() > 1:
        with _others():
            for work in [dist.all_reduce(tensor, async_op=True) for tensor in tensors]:
                work.wait()


def merged(figures: Mapping[str, float], combine: Any = sum) -> dict[str, float]:
    """Figures of all processes under their names; a process need not have all of them."""
    if count() == 1:
        return dict(figures)
    every = _told(dict(figures))
    names = dict.fromkeys(name for each in every for name in each)
    return {name: combine([each[name] for each in every if name in each]) for name in names}
