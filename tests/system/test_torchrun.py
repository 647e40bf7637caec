"""Runs that torchrun starts, on one machine and on two: they are started again where a process was killed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import torch
from processes import forked
from resumed_runs import BUDGET, assert_same_run, state, train

from flowward.training.folder import RunFolder

RUN = [*BUDGET, "--precision", "float32", "--iterations", "3"]
PROGRAM = """
import os, sys, time
sys.modules |= dict.fromkeys(["peft", "transformers", "accelerate"])  # not needed here, and slow to import
if os.environ["TORCHELASTIC_RESTART_COUNT"] != "0":
    time.sleep(3 * int(os.environ["RANK"]))  # it comes after the first one has looked for its address
from flowward.cli import main
sys.exit(main())
"""
MEETING = """
import os, signal, sys, time
from pathlib import Path
from flowward.system import distributed, launching
once, rank = Path(sys.argv[1]), int(os.environ["RANK"])
again, met = once.exists(), launching.met
def late(patience):
    found = met(patience)
    time.sleep(2 * rank * again)  # meanwhile the first one looks for its address
    return found
launching.met = late
with launching.joined(60.0):
    ranks, count = distributed.told(rank), os.environ["TORCHELASTIC_RESTART_COUNT"]
    if again:
        print(f"met {ranks} in process {rank} after {count} failures here", file=sys.stderr, flush=True)
    elif rank == 1:
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    else:
        time.sleep(int(sys.argv[2]))  # as one that is busy: torchrun may end it before it looks for the other
        distributed.wait()
"""
HOOK = """
import os, signal
from pathlib import Path
import psutil
def kill(step):
    once = Path({once!r})
    if step.index == 2 and not once.exists():
        once.touch()
        mine = os.environ["TORCHELASTIC_RUN_ID"]
        for each in psutil.process_iter(["environ"]):
            around = each.info["environ"] or {{}}
            if around.get("TORCHELASTIC_RUN_ID") == mine and around.get("RANK") == "{rank}":
                each.send_signal(signal.SIGKILL)
"""


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@contextmanager
def torchrun(*words: str | Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "torch.distributed.run", *map(str, words)]
    around = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=around)
    with process:
        try:
            yield process
        finally:
            process.terminate()  # it ends its processes, too


def layouts(kind: str) -> list[list[str]]:
    """The words of each torchrun: two processes, on one machine or on two, which are both this one."""
    if kind == "standalone":
        return [["--standalone", "--nproc-per-node", "2"]]
    name = f"tests-{os.getpid()}-{kind}"
    both = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-id", name]
    port = free_port()
    if kind == "static":
        both += ["--master-addr", "127.0.0.1", "--master-port", port]
        return [[*both, "--node-rank", str(number)] for number in range(2)]
    both += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1"]
    return [[*both, "--rdzv-conf", f"is_host={int(number == 0)}"] for number in range(2)]


def together(kind: str, words: Sequence[str | Path]) -> list[str]:
    """What each torchrun has printed; all must end with 0."""
    with ExitStack() as stack:
        each = [stack.enter_context(torchrun("--max-restarts", "1", *own, *words)) for own in layouts(kind)]
        said = [process.communicate(timeout=300)[0] for process in each]
        assert [process.returncode for process in each] == [0] * len(each), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run with two processes, which nobody killed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with forked():
        train(*RUN, "--model", tiny, "--output", folder, "--processes", "2", "--checkpoint-every", "1", "--keep", "3")
    return folder


def killed(kind: str, rank: int, tiny: str, where: Path) -> tuple[Path, str]:
    """A run in which one process was killed in iteration 2, after the checkpoint of iteration 1; what it printed."""
    (where / "program.py").write_text(PROGRAM)
    (where / "hook.py").write_text(HOOK.format(once=str(where / "once"), rank=rank))
    how = ["--model", tiny, "--checkpoint-every", "1", "--output", where / "run"]
    words = [where / "program.py", "train", *RUN, *how, "--resume", "auto", "--hook", f"{where / 'hook.py'}:kill"]
    said = "\n".join(together(kind, words))
    assert (where / "once").exists()
    return where / "run", said


def test_a_run_may_go_on_with_another_number_of_processes(whole: Path, tmp_path: Path) -> None:
    """From iteration 1 of two processes with one: the same weights, up to rounding."""
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for path in RunFolder.open(run).checkpoints()[1:]:
        path.unlink()
    train("--resume", run)
    one, two = state(run), state(whole)
    assert one["iteration"] == two["iteration"] == 3
    for copy, tensors in two["weights"].items():
        for name, tensor in tensors.items():
            torch.testing.assert_close(one["weights"][copy][name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["standalone", "static", "c10d"])
def test_processes_that_are_started_again_meet(kind: str, tmp_path: Path) -> None:
    """One that comes late does not read what the last attempt wrote, also where machines count failures apart."""
    (tmp_path / "meeting.py").write_text(MEETING)
    busy = "0" if kind == "static" else "60"  # there nothing else ends the process whose partner is gone
    said = "\n".join(together(kind, [tmp_path / "meeting.py", tmp_path / "once", busy]))
    counts = (0, 1) if kind == "c10d" else (1, 1)
    for rank, count in enumerate(counts):
        assert f"met [0, 1] in process {rank} after {count} failures here" in said


@pytest.mark.parametrize(
    ("kind", "rank"),
    [("standalone", 1), pytest.param("c10d", 0, marks=pytest.mark.slow)],
)
def test_a_killed_process_is_started_again(kind: str, rank: int, whole: Path, tiny: str, tmp_path: Path) -> None:
    run, said = killed(kind, rank, tiny, tmp_path)
    assert "run has not begun: starting it" in said and "run has begun: continuing it" in said
    assert "going on after iteration" in said
    assert_same_run(whole, run)
