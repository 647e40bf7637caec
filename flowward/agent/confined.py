"""The tool `python`: a snippet runs once, in a process of its own that is sealed off and has limits (`sandbox.py`).

| what a snippet tries | what follows |
| --- | --- |
| to compute, sleep or print without end | it is ended at a limit; the observation says which |
| memory, files, processes beyond a limit | an error in the snippet |
| the network | an error: there is none |
| files of the machine | only the libraries of Python and of the system are there, and they cannot be written |
| processes that outlive it | they end with it |
| variables of our environment, such as keys | it has a clean one |

Limits of memory and processor time count for each of its processes, so all together may take `processes` times as much.
It shares the kernel with everything else: against faults of the kernel, use a virtual machine.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess  # nosec B404
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from ..system.errors import at_least_one, positive
from .tools import Card, ToolError

PROGRAM = Path(__file__).with_name("sandbox.py")
LONGEST = 100_000  # characters of a snippet
GRACE = 3.0  # seconds to start and to end, beyond the limit of time
MEGABYTE = 1 << 20

# The exit codes of sandbox.py, which cannot be imported where there is no module `resource`.
UNSEALED, CPU, WALL, KILLED, CRASHED = 120, 121, 122, 123, 124


@dataclass(frozen=True)
class Bounds:
    """What a snippet may use."""

    cpu: int = 10
    """seconds of processor time of each process"""
    wall: float = 20.0
    """seconds"""
    memory: int = 1024
    """megabytes of address space of each process"""
    processes: int = 16
    """processes and threads at once"""
    files: int = 64
    """open files at once"""
    disk: int = 64
    """megabytes of each file, and of all files together if the snippet is confined"""
    output: int = 65_536
    """bytes of output"""

    def __post_init__(self) -> None:
        at_least_one(self, "cpu", "memory", "processes", "files", "disk", "output")
        positive(self, "wall")


class Python:
    """The tool `python`.

    Args:
        unconfined: run snippets with the rights of this program, with limits, but without isolation.

    Raises:
        ValueError: this system cannot isolate a process, and `unconfined` is not set.
    """

    slow = True

    def __init__(self, bounds: Bounds | None = None, unconfined: bool = False):
        self.bounds, self.unconfined = bounds or Bounds(), unconfined
        if os.name != "posix":
            raise ValueError("the tool python needs Linux or macOS")
        if not unconfined and (why := cannot_confine()):
            raise ValueError(
                f"this system cannot isolate the tool python ({why}); leave it out, or pass --python-unconfined where "
                "snippets of a model may read and write everything that you can"
            )

    @cached_property
    def card(self) -> Card:
        most = self.bounds
        reach = "your files and the network are within reach" if self.unconfined else "no network, no files of the user"
        return Card(
            "python",
            "Runs a Python snippet and returns what it prints, and the value of its last expression.",
            {
                "type": "object",
                "properties": {"code": {"type": "string", "description": "the snippet"}},
                "required": ["code"],
            },
            f"At most {most.wall:g} seconds and {most.memory} MB; {reach}; nothing is kept for the next snippet.",
        )

    def __call__(self, **arguments: Any) -> str:
        return run(str(arguments["code"]), self.bounds, not self.unconfined)


@cache
def cannot_confine() -> str:
    """Why this system cannot isolate a snippet; empty if it can. It is tried once."""
    if sys.platform != "linux":
        return "only Linux has what it takes"
    try:
        found = run("1 + 1", Bounds(), True)
    except ToolError as error:
        return str(error)
    return "" if found == "2" else f"a snippet returned '{found[:60]}'"


def run(code: str, bounds: Bounds, sealed: bool) -> str:
    """What a snippet prints, and the value of its last expression.

    Raises:
        ToolError: it raised an exception or was ended; the message holds what it has printed, and why.
    """
    if len(code) > LONGEST:
        raise ToolError(f"the snippet has {len(code)} characters, but at most {LONGEST} are allowed")
    job = {
        "code": code,
        "sealed": sealed,
        "cpu": bounds.cpu,
        "wall": bounds.wall,
        "memory": bounds.memory * MEGABYTE,
        "processes": bounds.processes,
        "files": bounds.files,
        "disk": bounds.disk * MEGABYTE,
    }
    with ExitStack() as stack:
        home = "/" if sealed else stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        status, output, whole = _ran(json.dumps(job).encode(), home, bounds)
    text = output.decode("utf-8", "replace").rstrip("\n")
    if not whole:
        raise ToolError(_before(f"the snippet was ended: it printed more than {bounds.output:,} bytes", text))
    if status == 0:
        return text
    if status == UNSEALED:
        raise ToolError(" ".join(text.split()) or "it did not start")
    ended = {
        CPU: f"the snippet was ended after {bounds.cpu} s of processor time",
        WALL: f"the snippet was ended after {bounds.wall:g} s",
        KILLED: "the snippet was ended by the system, perhaps for want of memory",
        CRASHED: "the snippet crashed the interpreter",
    }
    if status in ended:
        raise ToolError(_before(ended[status], text))
    raise ToolError(text or f"the snippet ended with the exit code {status}")


def _before(why: str, text: str) -> str:
    return f"{why}; before that it printed:\n{text}" if text else why


def _ran(job: bytes, home: str, bounds: Bounds) -> tuple[int, bytes, bool]:
    """(exit code, output, whether that is all of it). When it returns, no process of the snippet is left."""
    environment = {
        "HOME": home if home != "/" else "/home",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "PYTHONHASHSEED": "0",  # the same snippet prints the same
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
    }
    process = subprocess.Popen(  # nosec B603
        [sys.executable, "-s", "-P", "-B", str(PROGRAM)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=home,
        env=environment,
        start_new_session=True,
    )
    try:
        assert process.stdin and process.stdout
        with suppress(BrokenPipeError), process.stdin:
            process.stdin.write(job)
        output = _read(process.stdout.fileno(), bounds.output + 1, time.monotonic() + bounds.wall + GRACE)
        if len(output) > bounds.output:
            process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    finally:
        _end(process)
    code = process.returncode if process.returncode >= 0 else KILLED
    return code, output[: bounds.output], len(output) <= bounds.output


def _read(pipe: int, most: int, until: float) -> bytes:
    """The bytes of a pipe up to its end, so many, or a time."""
    found = b""
    while len(found) < most and (left := until - time.monotonic()) > 0:
        if select.select([pipe], [], [], left)[0]:
            part = os.read(pipe, min(most - len(found), 65_536))
            if not part:
                break
            found += part
    return found


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left, and forget the process."""
    if process.poll() is None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if process.stdout:
        process.stdout.close()
