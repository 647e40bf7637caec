"""Starting the processes of a run: `flowward train --processes N`, or torchrun.

Processes trust each other: they exchange pickles, which can contain code. So nobody else may reach their ports.
`launch` listens only on this machine; the port of torchrun needs a firewall.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from subprocess import Popen, TimeoutExpired
from typing import Any

import torch
import torch.distributed as dist

from .attempts import met
from .distributed import PATIENCE, count, grouped, rank
from .terminal import tell

MOST = 256  # processes on one machine
GRACE = 120.0  # seconds for the others to save and exit after one process has failed


@contextmanager
def joined(patience: float = PATIENCE, team: int = 1) -> Iterator[int]:
    """Inside, this process joins the others if torchrun started it; yields the number of processes.

    Only the first prints. A process that waits longer than `patience` seconds for another gives up (see `patiently`).

    Args:
        team: processes that share the sequence of each sample.

    Raises:
        ValueError: there are more processes than CUDA devices, or they do not make whole teams.
        Deserted: the others did not come, or cannot be reached.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or dist.is_initialized():
        _refuse_torn(team, count())
        yield count()
        return
    _refuse_torn(team, int(os.environ["WORLD_SIZE"]))
    local = int(os.environ["LOCAL_RANK"])
    if torch.cuda.is_available():
        _refuse_many(local + 1)
        torch.cuda.set_device(local)
    said = sys.stdout
    with grouped(patience, team, **met(patience)):
        try:
            if rank() > 0:
                sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process
            yield count()
        finally:
            sys.stdout = said


def _refuse_torn(team: int, processes: int) -> None:
    if processes % team:
        raise ValueError(
            f"--context-parallel {team} needs a number of processes that is a multiple of {team}, not {processes}"
        )


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
        for number in map(str, range(processes)):
            ranks.append(Popen(command, env={**shared, "RANK": number, "LOCAL_RANK": number}))
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
        for each in ranks if os.name == "posix" else ():  # on Windows the console sends them itself
            each.send_signal(number)

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
    for each in ranks:
        try:
            each.wait(max(0.0, deadline - time.monotonic()))
        except TimeoutExpired:  # it waits for the failed process
            each.kill()
            each.wait()
    return code if code >= 0 else 128 - code  # a shell's exit code for a signal
