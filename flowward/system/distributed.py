"""Several processes, one run: each does a share of the work, and all have the same weights.

Images and training points depend only on their number, so it does not matter which process makes them. Samples stay
where they were drawn, and every process learns the scores of all; gradients are summed before each optimiser step. With
one process, all functions here do nothing. Processes are started by `flowward train --processes N` or by `torchrun`.

Processes trust each other: they exchange pickles, which can contain code. So nobody else may reach their ports.
`launch` listens only on this machine; the port of torchrun needs a firewall.
"""

from __future__ import annotations

import os
import signal
import socket
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

from .terminal import tell

T = TypeVar("T")
PATIENCE = 600.0  # seconds that one process waits for another
MOST_PATIENCE = 1e8  # three years
LONG = timedelta(hours=2)  # the same while models are loaded, prompts encoded, and servers asked
BUFFER = 64 * 2**20  # bytes of gradients that travel together
MOST = 256  # processes on one machine
GRACE = 120.0  # seconds for the others to save and exit after one process has failed


_waited = 0.0  # seconds: see `waited`
_group: Any = None  # the process group that is used now; None: torch's default one
_long: Any = None  # the one with LONG patience


class Deserted(RuntimeError):
    """Another process of the run has ended."""


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def joined(patience: float = PATIENCE) -> Iterator[int]:
    """Inside, this process joins the others if torchrun started it; yields the number of processes.

    Only the first prints. A process that waits longer than `patience` seconds for another gives up (see `patiently`).

    Raises:
        ValueError: there are more processes than CUDA devices.
    """
    global _long
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        yield count()
        return
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        _refuse_many(local + 1)
        torch.cuda.set_device(local)
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        timeout=timedelta(seconds=min(patience, MOST_PATIENCE)),
    )
    _long = dist.new_group(timeout=LONG)
    said = sys.stdout
    try:
        if rank() > 0:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process
        yield count()
    finally:
        sys.stdout, _long = said, None
        dist.destroy_process_group()


def _refuse_many(processes: int) -> None:
    if processes > (devices := torch.cuda.device_count()):
        raise ValueError(f"{processes} processes need {processes} CUDA devices, but this machine has {devices}")


def launch(processes: int, words: Sequence[str]) -> int:
    """Run `flowward WORDS` in several processes on this machine, and return the exit code.

    It does what `torchrun` does on one machine, except for signals: they reach every process, and each exits when it is
    ready. (torchrun keeps Ctrl-C from its processes, and kills them 30 seconds after SIGTERM, even while they save.)

    Raises:
        ValueError: there are too few CUDA devices, or too many processes for one machine.
    """
    if processes > MOST:
        raise ValueError(
            f"at most {MOST} processes can share a run on one machine, not {processes:,}: lower --processes"
        )
    if torch.cuda.is_available():
        _refuse_many(processes)
    store = _store()
    shared = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        **_loopback(),
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "WORLD_SIZE": str(processes),
        "TORCHELASTIC_RUN_ID": "flowward",
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the store exists: the first process must not make one
    }
    command = [sys.executable, "-m", "flowward", *words]
    ranks: list[Popen[bytes]] = []
    with _passed_on(ranks):
        for rank in map(str, range(processes)):
            ranks.append(Popen(command, env={**shared, "RANK": rank, "LOCAL_RANK": rank}))
        return _ended(ranks)


def _store() -> Any:
    """The store through which the processes find each other. Only this machine reaches it: it listens on loopback.

    By itself torch would listen on all networks, and whoever reaches the store can make the processes load pickles.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    port, own = listener.getsockname()[1], listener.detach()  # the store closes it
    return dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=own
    )


def _loopback() -> dict[str, str]:
    """The setting that makes gloo listen on loopback, too."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    return {"GLOO_SOCKET_IFNAME": names[0]} if names else {}


@contextmanager
def _passed_on(ranks: Sequence[Popen[bytes]]) -> Iterator[None]:
    """Inside, this process passes SIGINT and SIGTERM on to these processes instead of exiting."""

    def pass_on(number: int, frame: object) -> None:
        for rank in ranks if os.name == "posix" else ():  # on Windows the console sends them itself
            rank.send_signal(number)

    before = {name: signal.signal(name, pass_on) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _ended(ranks: Sequence[Popen[bytes]]) -> int:
    """Wait for all, but at most GRACE seconds after one has failed. Returns the exit code of the whole."""
    while any(rank.poll() is None for rank in ranks) and not any(rank.poll() for rank in ranks):
        time.sleep(0.1)
    number, code = next(((n, rank.returncode) for n, rank in enumerate(ranks) if rank.returncode), (0, 0))
    if code < 0:  # it was killed, so it could not print a message itself
        tell(f"process {number} was killed by signal {-code}")
    deadline = time.monotonic() + GRACE
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutExpired:  # it waits for the failed process
            rank.kill()
            rank.wait()
    return code if code >= 0 else 128 - code  # a shell's exit code for a signal


@contextmanager
def patiently() -> Iterator[None]:
    """Inside, processes wait LONG for each other: each may have to load, encode, or ask a server for some time.

    All processes have to enter and leave it together.
    """
    global _group
    before, _group = _group, _long
    try:
        yield
    finally:
        _group = before


@contextmanager
def first() -> Iterator[None]:
    """Run the block in the first process alone; the others follow when it is done."""
    if rank() > 0:
        wait()
    yield
    if rank() == 0:
        wait()


def wait() -> None:
    """Wait until every process calls this."""
    if count() > 1:
        with _others():
            dist.barrier(_group)


@contextmanager
def _others() -> Iterator[None]:
    """Inside, this process needs the others.

    Raises:
        Deserted: another process has ended; torch reports that as a plain RuntimeError.
    """
    global _waited
    started = time.perf_counter()
    try:
        yield
    except RuntimeError as error:
        raise Deserted(
            "another process of this run has ended, or did not answer in time (--patience), so this one cannot "
            "continue; see its message above"
        ) from error
    finally:
        _waited += time.perf_counter() - started


def waited() -> float:
    """Seconds that this process has spent with what needs the others; on a GPU sums of gradients end later."""
    return _waited


def is_news(sentence: str) -> bool:
    """Whether no process of this run has printed this sentence yet; works even if some have ended."""
    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    try:
        store = dist.TCPStore(where, port, timeout=timedelta(seconds=2), wait_for_workers=False)  # type: ignore[attr-defined]
        return bool(store.add(f"said/{sentence}", 1) == 1)
    except RuntimeError:  # the store is gone: print it twice rather than never
        return True


def share(rows: Tensor, unit: int = 1) -> Tensor:
    """This process's consecutive part of rows [n], in whole units; parts differ by at most one unit."""
    return rows.view(-1, unit).tensor_split(count())[rank()].flatten()


def everyone(value: T) -> list[T]:
    """Gather the values of all processes, in order: tensors, or dataclasses of tensors and other values.

    Tensors may have different sizes, and stay on their devices. Other values must be the same in every process.
    """
    if count() == 1:
        return [value]
    mine = list(_tensors(value))
    shapes = told([tuple(tensor.shape) for tensor in mine])
    found: list[list[Tensor]] = [[] for _ in shapes]
    for number, tensor in enumerate(mine):
        sizes = [torch.Size(shape[number]) for shape in shapes]
        longest = max(size.numel() for size in sizes)
        padded = tensor.new_zeros(longest)
        padded[: tensor.numel()] = tensor.flatten()
        parts = [torch.empty_like(padded) for _ in sizes]
        with _others():
            dist.all_gather(parts, padded, _group)
        for each, part, size in zip(found, parts, sizes, strict=True):
            each.append(part[: size.numel()].view(size))
    return [_rebuilt(value, iter(tensors)) for tensors in found]


def told(value: T) -> list[T]:
    """Gather the values of all processes, in order; they must be picklable, and should be small."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    with _others():
        dist.all_gather_object(found, value, _group)
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
    """The messages of all processes, in order."""
    if count() == 1:
        return [text] if text else []
    return [each for each in told(text) if each]


def any_of(condition: bool) -> bool:
    """Whether the condition is true in any process."""
    return bool(messages("yes" if condition else None))


def add_up(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its sum over the processes, bit-identical in all of them.

    They travel in a few flat buffers: a network has hundreds of tensors, and one collective each would cost more in
    waiting than in bytes. One buffer exists at a time.
    """
    if count() == 1:
        return
    for alike in _buffers(tensors):
        flat = torch.cat([tensor.flatten() for tensor in alike])
        with _others():
            dist.all_reduce(flat, group=_group)
        for tensor, part in zip(alike, flat.split([tensor.numel() for tensor in alike]), strict=True):
            tensor.copy_(part.view_as(tensor))


def _buffers(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in turn, of one type and device and at most BUFFER bytes; a larger one is alone."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for alike in kinds.values():
        part, size = list[Tensor](), 0
        for tensor in alike:
            if part and size + tensor.nbytes > BUFFER:
                yield part
                part, size = [], 0
            part.append(tensor)
            size += tensor.nbytes
        yield part


def apart(tensors: Sequence[Tensor]) -> list[int]:
    """The processes whose tensors differ from those of the first, by a 64-bit sum of their bits; usually none."""
    if count() == 1:
        return []
    sums = told(sum((number + 1) * _bits(tensor) for number, tensor in enumerate(tensors)) % 2**64)
    return [rank for rank, own in enumerate(sums) if own != sums[0]]


def _bits(tensor: Tensor) -> int:
    """The sum of the bits of all numbers, as whole numbers that start again at 2^64."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().contiguous().view(whole).sum(dtype=torch.int64))


def merged(figures: Mapping[str, float], combine: Any = sum) -> dict[str, float]:
    """Combine the metrics of all processes by name; a process may lack some of them."""
    if count() == 1:
        return dict(figures)
    every = told(dict(figures))
    names = dict.fromkeys(name for each in every for name in each)
    return {name: combine([each[name] for each in every if name in each]) for name in names}
