"""CPU threads: whether OpenMP gives torch as many as it asks for, and whether they get a core when they want to run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

TASKS = "/proc/self/task"  # Linux: a folder per thread
ENOUGH = 0.5  # seconds of work below which a share means nothing
TRUE = ("true", "1", "yes", "on")  # for libgomp only the first, for LLVM's OpenMP all of them


def refuse_fewer() -> None:
    """Refuse settings with which OpenMP starts fewer threads than torch asks for.

    oneDNN, which multiplies matrices for torch, then leaves out the work of the missing threads, without an error
    (docs/notes/openmp.md). One thread is always there.

    Raises:
        ValueError: OMP_DYNAMIC or OMP_THREAD_LIMIT is such a setting.
    """
    threads = torch.get_num_threads()
    dynamic, limit = (os.environ.get(name, "").strip() for name in ("OMP_DYNAMIC", "OMP_THREAD_LIMIT"))
    if threads > 1 and dynamic.lower() in TRUE:
        raise ValueError(
            f"OMP_DYNAMIC={dynamic} makes torch compute wrong numbers when other programs are running: unset it, or "
            "set OMP_NUM_THREADS=1"
        )
    if limit.isdecimal() and 0 < int(limit) < threads:
        raise ValueError(
            f"OMP_THREAD_LIMIT={limit} makes torch compute wrong numbers with {threads} threads: unset it, or set "
            f"OMP_NUM_THREADS={limit}"
        )


@dataclass
class Cores:
    """What the threads of this process got of the machine's processor cores, during `watched`."""

    share: float | None = None
    """time that they ran, over that in which they wanted to; None: unknown, or too short to say"""


@contextmanager
def watched() -> Iterator[Cores]:
    """Measure the share of the cores that this process gets inside.

    A thread that waits for something else than a core (for another thread, a file, a server, a GPU) counts neither way.
    So the share is 1 on a quiet machine, even if only one thread has work. CPU seconds over (seconds x threads) would
    not be: threads without work sleep.
    """
    cores, (ran, waited) = Cores(), _times()
    yield cores
    now_ran, now_waited = _times()
    ran, waited = now_ran - ran, now_waited - waited
    if ran >= 0 and waited >= 0 and ran + waited >= ENOUGH:  # less than 0: a thread has ended, and took its times along
        cores.share = ran / (ran + waited)


def _times() -> tuple[float, float]:
    """Seconds that all threads have run, and that they were ready to run without a core; 0 if the system has none."""
    ran = waited = 0
    for task in os.listdir(TASKS) if os.path.isdir(TASKS) else ():
        try:
            found = Path(TASKS, task, "schedstat").read_text().split()
        except OSError:  # the thread has just ended, or this kernel does not count
            continue
        ran, waited = ran + int(found[0]), waited + int(found[1])
    return ran / 1e9, waited / 1e9
