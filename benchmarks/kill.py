"""Kill training runs, resume them, and compare the result with that of a run that was not killed.

    python benchmarks/kill.py [--processes 1 2] [--random 50] [--every 1] [--model scenes] [--log kills.jsonl]

Two kinds of kills. Random: SIGKILL at a random moment. Crash points: at every file operation of a run inside its folder
(crash_points.py), in a run from its start and in one that is resumed after a kill, before the operation and inside it.
Then the same command line with `--resume auto` must finish the run. Equal means: policy, old copy, EMA, optimiser and
all metrics to the bit, the same sample grids, and no temporary file left.

Runs are short: three iterations of eight images, LoRA of rank 2, checkpoints after the second and the last. Results
are appended to the log, and what is in it is not done again. Prints a table. Needs Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from crash_points import install

WORDS = shlex.split(
    "train --lora-rank 2 --iterations 3 --images-per-update 8 --group-size 4 --microbatch 8 --rollout-batch 8 "
    "--learning-rate 1e-3 --algorithm.rollout.steps 2 --evaluation.images 4 --evaluation.sampler.steps 1 "
    "--evaluate-every 2 --checkpoint-every 2 --reward balance --evaluation.rewards balance --evaluation.guard "
    "jpeg-compressibility --threads 1 --precision float32 --resume auto"
)
ENOUGH = 300.0  # seconds for one process; a process that needs longer hangs


@dataclass(frozen=True)
class Kill:
    """Where a run is killed."""

    kind: str  # random, start (crash point of a run from its start), resumed (of a resumed run)
    number: int  # of the random kill, or of the file operation
    inside: bool = False  # in the middle of the operation
    what: str = ""  # the operation


class Program:
    """`flowward train` in processes that can be killed. They are forked, so that none needs seconds to import."""

    def __init__(self, folder: Path, model: str, processes: int):
        self.folder, self.model, self.processes = folder, model, processes
        self.words = [*WORDS, "--model", model, *(["--processes", str(processes)] if processes > 1 else [])]

    def begin(self, run: Path, kill: Kill | None = None, log: Path | None = None) -> int:
        """Start a run, which ends itself at a crash point. Returns the number of its process."""
        return _forked([*self.words, "--output", str(run)], run, kill if kill and kill.kind != "random" else None, log)

    def end(self, run: Path, kill: Kill | None = None, log: Path | None = None) -> int:
        """Start a run and wait for its end. Returns its exit code; negative: a signal."""
        return _waited(self.begin(run, kill, log))


def _forked(words: Sequence[str], run: Path, kill: Kill | None, log: Path | None) -> int:
    """A copy of this process, in which everything is imported already, becomes the program."""
    sys.stdout.flush()
    if number := os.fork():
        return number
    code = 1
    try:
        os.setsid()
        out = os.open(run.with_suffix(".err"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        if kill or log:
            install(run, kill.number if kill else 0, bool(kill and kill.inside), log)
        from flowward.cli import main
        from flowward.system import launching

        launching.Popen = Rank  # type: ignore[misc, assignment]
        code = main(words)
    finally:
        sys.stdout.flush()
        os._exit(code)


class Rank:
    """What `launching.launch` starts in the place of a `subprocess.Popen`: a copy of this process.

    It has the crash points of the process that it is a copy of, which has done no file operation so far.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]):
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid:
            return
        code = 1
        try:
            os.environ.clear()
            os.environ.update(env)
            from flowward.cli import main

            code = main(command[command.index("flowward") + 1 :])
        finally:
            sys.stdout.flush()
            os._exit(code)

    def poll(self) -> int | None:
        if self.returncode is None and (found := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(found[1])
        return self.returncode

    def wait(self, timeout: float = ENOUGH) -> None:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("flowward", timeout)
            time.sleep(0.01)

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _waited(process: int, enough: float = ENOUGH) -> int:
    """The exit code of a process. What is left of its group is killed, as a machine that fails kills all."""
    deadline = time.monotonic() + enough
    while (found := os.waitpid(process, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    _kill(process)
    if found[0] == 0:
        os.waitpid(process, 0)
        return 1
    return os.waitstatus_to_exitcode(found[1])


def _kill(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def outcome(run: Path) -> dict[str, Any]:
    """Everything that must be equal: the last checkpoint, all metrics but times, and the names of all files."""
    from flowward.system import checkpoint

    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text("utf-8").splitlines()]
    for line in lines:
        for name in ("seconds", "speed"):
            line.pop(name, None)
    last = max((run / "checkpoints").glob("[0-9]*.*"))
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    grids = [path.read_bytes() for path in sorted((run / "samples").iterdir())]
    return {"state": checkpoint.load(last), "lines": lines, "names": names, "grids": grids}


def same(one: Any, other: Any) -> bool:
    """Whether two nested states are equal to the bit."""
    import torch

    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def differences(wanted: dict[str, Any], run: Path) -> list[str]:
    """What is not as it should be; empty if all is well."""
    try:
        found = outcome(run)
    except (OSError, ValueError) as error:
        return [f"{type(error).__name__}: {error}"]
    wrong = [key for key in wanted if not same(wanted[key], found[key])]
    if "names" in wrong:
        wrong.append(f"files {sorted(set(found['names']) ^ set(wanted['names']))}")
    return wrong


def tried(program: Program, kill: Kill, wanted: dict[str, Any], seconds: float, begun: Path) -> dict[str, Any]:
    """Kill one run, resume it, and compare."""
    run = program.folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    run.with_suffix(".err").unlink(missing_ok=True)
    if kill.kind == "resumed":
        shutil.copytree(begun, run)
    if kill.kind == "random":
        process = program.begin(run)
        time.sleep(random.Random(f"{program.processes} {kill.number}").uniform(0, seconds))
        _kill(process)
        died = _waited(process)
    else:
        died = program.end(run, kill)
    saved = sorted(path.name for path in run.rglob("*.safetensors")) if run.exists() else []
    code = program.end(run)
    wrong = [f"exit code {code}"] if code else differences(wanted, run)
    if "Traceback" in (said := run.with_suffix(".err").read_text("utf-8", "replace")):
        wrong.append("traceback")
    return {"died": died, "saved": saved, "wrong": wrong, **({"said": said[-2000:]} if wrong else {})}


def points(program: Program, run: Path, kind: str) -> Iterator[Kill]:
    """All crash points of a run that is not killed; `run` becomes that run."""
    log = program.folder / f"{kind}.operations"
    log.unlink(missing_ok=True)
    code = program.end(run, log=log)
    assert code == 0, run.with_suffix(".err").read_text("utf-8")
    for number, line in enumerate(log.read_text("utf-8").splitlines(), 1):
        what = line.removesuffix(" +")
        yield Kill(kind, number, False, what)
        if what != line:
            yield Kill(kind, number, True, what)


def cases(program: Program, randoms: int, every: int) -> tuple[dict[str, Any], float, Path, list[Kill]]:
    """What a run must end as, its seconds, a run that was killed inside its first checkpoint, and all kills."""
    whole, begun, again = (program.folder / name for name in ("whole", "begun", "again"))
    started = time.monotonic()
    fresh = list(points(program, whole, "start"))
    seconds, found = time.monotonic() - started, [Kill("random", number) for number in range(randoms)]
    if every:
        saves = [kill for kill in fresh if kill.inside and kill.what.startswith("save ")]
        program.end(begun, saves[-1])  # the last checkpoint is cut off: the run is resumed from the one before
        shutil.copytree(begun, again)
        found += [kill for kill in [*fresh, *points(program, again, "resumed")] if kill.number % every == 0]
    return outcome(whole), seconds, begun, found


def known(log: Path) -> dict[str, dict[str, Any]]:
    """The results so far."""
    lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()] if log.exists() else []
    return {line["key"]: line for line in lines}


def table(lines: Sequence[dict[str, Any]]) -> None:
    """Print what was tried, and each failure. Runs that had ended before their kill do not count."""
    killed = [line for line in lines if line["died"] or line["wrong"]]
    total = Counter((line["processes"], line["kind"]) for line in killed)
    good = Counter((line["processes"], line["kind"]) for line in killed if not line["wrong"])
    print("| processes | killed | equal after resuming |\n| --- | --- | --- |")
    names = {
        "random": "at a random moment",
        "start": "at a file operation of a new run",
        "resumed": "at a file operation of a resumed run",
    }
    for processes, kind in sorted(total):
        print(f"| {processes} | {names[kind]} | {good[processes, kind]} of {total[processes, kind]} |")
    for line in lines:
        if line["wrong"]:
            print(f"{line['key']}: {', '.join(line['wrong'])}\n{line['said']}")


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1])
    parser.add_argument("--random", type=int, default=50)
    parser.add_argument("--every", type=int, default=1, help="every N-th crash point (0: none)")
    parser.add_argument("--model", default="scenes")
    parser.add_argument("--log", type=Path, default=Path("kills.jsonl"))
    how = parser.parse_args(given)
    done = known(how.log)
    for processes in how.processes:
        with tempfile.TemporaryDirectory() as where:
            program = Program(Path(where), how.model, processes)
            if processes == how.processes[0]:
                _warm(program)
            wanted, seconds, begun, kills = cases(program, how.random, how.every)
            for kill in kills:
                key = f"{processes} {kill.kind} {kill.number}{' inside' * kill.inside}"
                if key in done:
                    continue
                found = tried(program, kill, wanted, seconds, begun)
                done[key] = {"key": key, "processes": processes, "kind": kill.kind, "what": kill.what, **found}
                with open(how.log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(done[key]) + "\n")
    table(list(done.values()))
    return int(any(line["wrong"] for line in done.values()))


def _warm(program: Program) -> None:
    """Import and load everything once, in one process: this one, which is then forked."""
    import torch

    from flowward.cli import main as flowward

    torch.set_num_threads(1)
    out, sys.stdout = sys.stdout, open(os.devnull, "w")  # noqa: SIM115
    try:
        assert flowward([*WORDS, "--model", program.model, "--output", str(program.folder / "warm")]) == 0
    finally:
        sys.stdout = out


if __name__ == "__main__":
    sys.exit(main())
