"""Several processes, one run: each does a share of the work, and all have the same weights.

Images and training points depend only on their number, so it does not matter which process makes them. Samples stay
where they were drawn, and every process learns the scores of all; gradients are summed before each optimiser step. With
one process, all functions here do nothing. How processes start and find each other is in launching.py.

A team is one process, or several that share the sequence of each sample (`--context-parallel`): its members draw the
same samples, and samples are dealt out among teams.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")
PATIENCE = 600.0  # seconds that one process waits for another
MOST_PATIENCE = 1e8  # three years
LONG = timedelta(hours=2)  # the same while models are loaded, prompts encoded, and servers asked
BUFFER = 64 * 2**20  # bytes of gradients that travel together


_waited = 0.0  # seconds: see `waited`
_group: Any = None  # the process group that is used now; None: torch's default one
_long: Any = None  # the one with LONG patience
_team = 1  # processes per team


class Deserted(RuntimeError):
    """Another process of the run has ended."""


DESERTED = (
    "another process of this run has ended, or did not answer in time (--patience), so this one cannot continue; see "
    "its message above"
)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """The number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def team() -> int:
    """The number of this process's team, from 0."""
    return rank() // _team


def teams() -> int:
    """The number of teams."""
    return count() // _team


@contextmanager
def grouped(patience: float = PATIENCE, size: int = 1, **given: Any) -> Iterator[None]:
    """Inside, this process belongs to a process group, in teams of `size`. `given` is for `init_process_group`.

    Raises:
        Deserted: it cannot connect to the others.
    """
    global _long, _team
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=timedelta(seconds=min(patience, MOST_PATIENCE)), **given)
        _long, _team = dist.new_group(timeout=LONG), size
    except RuntimeError as error:
        why = (str(error).splitlines() or ["no details"])[0]
        raise Deserted(
            f"this process cannot connect to the others: one of them has ended, or a firewall is in the way ({why})"
        ) from error
    try:
        yield
    finally:
        _long, _team = None, 1
        dist.destroy_process_group()


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


def machine() -> int:
    """The number of this machine in the run, from 0; torchrun counts every torchrun command as a machine."""
    return int(os.environ.get("GROUP_RANK", "0"))


def machines() -> int:
    """The number of machines."""
    return int(os.environ.get("GROUP_WORLD_SIZE", "1"))


@contextmanager
def first_here() -> Iterator[None]:
    """Run the block in the first process of each machine; the others follow when all of these are done."""
    leads = told(machine()).index(machine()) == rank()
    if not leads:
        wait()
    yield
    if leads:
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
        raise Deserted(DESERTED) from error
    finally:
        _waited += time.perf_counter() - started


def waited() -> float:
    """Seconds that this process has spent with what needs the others; on a GPU sums of gradients end later."""
    return _waited


def share(rows: Tensor, unit: int = 1) -> Tensor:
    """This team's consecutive part of rows [n], in whole units; parts differ by at most one unit."""
    return rows.view(-1, unit).tensor_split(teams())[team()].flatten()


def in_step(parts: Sequence[T], blank: T, collective: bool = True) -> Iterator[tuple[T, bool]]:
    """The parts of this process, with True; then as many blanks as another process has more parts, with False.

    For work that is `collective`, so that every process has to do it equally often: a pass through split weights would
    keep the others waiting for a process without a part.
    """
    most = max(told(len(parts))) if collective else len(parts)
    for part in parts:
        yield part, True
    for _ in range(most - len(parts)):
        yield blank, False


def is_split(tensor: Any) -> bool:
    """Whether each process may have another part of this tensor. No `isinstance`: DTensor takes long to import."""
    return any(not each.is_replicate() for each in getattr(tensor, "placements", ()))


def part(tensor: Any) -> Tensor:
    """What this process holds of a tensor: all of it, unless it is split."""
    found: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return found


def whole(tensor: Any) -> Tensor:
    """All of a tensor, of which processes may hold parts; then all of them must call this."""
    found: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return found


def everyone(value: T) -> list[T]:
    """Gather the values of all teams, in order: tensors, or dataclasses of tensors and other values.

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
    return [_rebuilt(value, iter(tensors)) for tensors in found[::_team]]


def told(value: T) -> list[T]:
    """Gather the values of all processes, in order; they must be picklable, and should be small."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    with _others():
        dist.all_gather_object(found, value, _group)
    return found


def each_team(value: T) -> list[T]:
    """The same, one value per team: those of its members are equal."""
    return told(value)[::_team]


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
    """The processes whose tensors differ from those of the first, by a 64-bit sum of their bits; usually none.

    Of split tensors those processes are compared that hold the same part.
    """
    if count() == 1:
        return []
    place = _place(tensors[0]) if tensors else 0
    own = sum((number + 1) * _bits(tensor) for number, tensor in enumerate(tensors)) % 2**64
    every = told((place, own))
    first = dict(reversed(every))
    return [rank for rank, (place, own) in enumerate(every) if own != first[place]]


def _place(tensor: Any) -> int:
    """Which part of the tensor this process holds, by its number; 0 if it holds all of it."""
    return int(tensor.device_mesh.get_local_rank(tensor.device_mesh.ndim - 1)) if is_split(tensor) else 0


def _bits(tensor: Any) -> int:
    """The sum of the bits of all numbers that are here, as whole numbers that start again at 2^64."""
    held = part(tensor.detach())
    kind = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[held.element_size()]
    return int(held.contiguous().view(kind).sum(dtype=torch.int64))


def merged(figures: Mapping[str, float], combine: Any = sum) -> dict[str, float]:
    """Combine the metrics of all teams by name; one may lack some of them."""
    if count() == 1:
        return dict(figures)
    every = each_team(dict(figures))
    names = dict.fromkeys(name for each in every for name in each)
    return {name: combine([each[name] for each in every if name in each]) for name in names}
