"""Several processes for a test, forked from one that has imported what they need: each would take seconds for that."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import reduction
from typing import Any
from unittest.mock import patch

from torch.multiprocessing.spawn import start_processes

IMPORTED = (
    "pytest",
    "peft",
    "diffusers.models",
    "diffusers.pipelines.flux.pipeline_flux",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "diffusers.pipelines.wan.pipeline_wan",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "flowward.models.pipelines",
    "flowward.models.scenes",
    "flowward.training.assembly",
    "transformers.models.llama.modeling_llama",
    "flowward.agent.assembly",
)
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def together(work: Callable[..., None], given: Sequence[Any], count: int) -> None:
    """Call work(number, *given) in `count` new processes and wait for all; an exception in one of them is raised."""
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    start_processes(work, tuple(given), count, start_method=METHOD)


@contextmanager
def forked() -> Iterator[None]:
    """Inside, the processes of `--processes N` are forked, too."""
    from flowward.system import launching

    with patch.object(launching, "Popen", Forked):
        yield


class Forked:
    """`python -m flowward ...` in the place of a `subprocess.Popen`, with this process's folder, output and errors."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str]):
        multiprocessing.set_forkserver_preload(list(IMPORTED))
        words = tuple(command[command.index("flowward") + 1 :])
        given = (words, dict(env), os.getcwd(), Output(1), Output(2))
        self.process = multiprocessing.get_context(METHOD).Process(target=_program, args=given)
        self.process.start()

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def wait(self, timeout: float | None = None) -> None:
        self.process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("flowward", timeout or 0.0)

    def send_signal(self, number: int) -> None:
        os.kill(self.process.pid or 0, number)

    def kill(self) -> None:
        self.process.kill()


class Output:
    """A file descriptor that another process gets a copy of."""

    def __init__(self, number: int):
        self.number = number

    def __reduce__(self) -> Any:
        return _copied, (reduction.DupFd(self.number),)


def _copied(file: Any) -> int:
    return int(file.detach())


def _program(words: Sequence[str], env: Mapping[str, str], folder: str, out: int, err: int) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    os.dup2(out, 1)
    os.dup2(err, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from flowward.cli import main

    sys.exit(main(list(words)))
