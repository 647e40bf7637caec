"""Time an epoch of flowward beside an epoch of other programs, in turns, on one machine.

    python benchmarks/peers.py --ours diffusion_nft --microbatch 32 16 8
    python benchmarks/peers.py --worker peer 'python their_worker.py' --ours diffusion_nft --compile
    python benchmarks/peers.py --beside before ../older-checkout --scenes diffusion_nft

Each contender is a process that waits for lines on its standard input. For each line `epoch` it runs one epoch and
answers with one line of JSON: {"wall": seconds, "cpu": user and system seconds, "evaluations": {...}, "threads": n}.
`quit`, or the end of its input, ends it. All start and warm up first. Then each does one epoch in turn, and every
second round goes backwards (A B B A), so that a machine that becomes slower or faster does not favour anyone. Printed:
medians with [min max], and the ratio to the first contender: the median over rounds of the ratio within the round.

`--ours` names workloads of benchmarks/tiny_sd3.py. `--scenes` names algorithms that train the built-in model in float32
with their usual settings and fewer images. `--beside` adds an older checkout of flowward, as the first contender.
docs/benchmarks.md has a worker that you can copy.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowward.training.trainer import Trainer

Answer = dict[str, Any]
HOME = Path(__file__).resolve().parents[1]
MICROBATCH = 32  # training points per pass of the workloads of tiny_sd3.py
LAST = 8  # lines of a worker's standard error that are shown when it fails
PATIENCE = 30.0  # seconds in which a worker must end after `quit`


class WorkerError(RuntimeError):
    """A worker ended too early, or its answer cannot be used."""


@dataclass
class Worker:
    """A contender's process."""

    name: str
    process: subprocess.Popen[str]
    errors: IO[bytes]  # what it writes to standard error

    def epoch(self) -> Answer:
        """Let it run an epoch.

        Raises:
            WorkerError: it ended, or did not answer with JSON that has `wall` and `cpu` above 0.
        """
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write("epoch\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"worker {self.name} ended with exit code {self.process.wait()}{self._last_words()}")
        return self._checked(line)

    def _checked(self, line: str) -> Answer:
        try:
            found = json.loads(line)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise WorkerError(f"worker {self.name} answered {line.strip()!r:.120}, not JSON{self._last_words()}")
        for key in ("wall", "cpu"):
            if not isinstance(found.get(key), int | float) or found[key] <= 0:
                raise WorkerError(f"the answer of worker {self.name} needs '{key}' in seconds, above 0: {line.strip()}")
        return found

    def _last_words(self) -> str:
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", "replace").strip().splitlines()[-LAST:]
        return "; its last error lines:\n" + "\n".join(lines) if lines else "; it wrote no error"

    def end(self) -> None:
        """Send `quit`; end the process if it does not leave."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write("quit\n")
            self.process.stdin.close()
            self.process.wait(PATIENCE)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self.process.kill()
            self.process.wait()


@contextmanager
def started(name: str, command: Sequence[str], threads: int) -> Iterator[Worker]:
    """Inside, the contender's process runs.

    Raises:
        WorkerError: there is no such program.
    """
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    with tempfile.TemporaryFile() as errors:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8",
                env={**os.environ, **counts},
            )  # fmt: skip
        except OSError as error:
            raise WorkerError(f"worker {name} cannot be started: {error}") from error
        worker = Worker(name, process, errors)
        try:
            yield worker
        finally:
            worker.end()


def order(number: int, count: int) -> list[int]:
    """Who goes when in a round: every second round goes backwards."""
    return list(range(count)) if number % 2 == 0 else list(reversed(range(count)))


def conducted(
    workers: Sequence[Worker], rounds: int, warm: int, tell: Callable[[str], None] = lambda line: None
) -> list[list[Answer]]:
    """The answers of each worker, one per round.

    Args:
        warm: epochs of each before the first round, which do not count.
        tell: gets a line after each round.
    """
    for worker in workers:
        for _ in range(warm):
            worker.epoch()
    found: list[list[Answer]] = [[] for _ in workers]
    for number in range(rounds):
        for which in order(number, len(workers)):
            found[which].append(workers[which].epoch())
        tell(f"round {number + 1}: " + "  ".join(f"{own[-1]['cpu']:.3f}" for own in found))
    return found


@dataclass(frozen=True)
class Figures:
    """Median, smallest and largest of some numbers."""

    middle: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Figures:
        return cls(median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.middle:.3f} [{self.low:.3f} {self.high:.3f}]"


def ratios(own: Sequence[Answer], first: Sequence[Answer], key: str) -> Figures:
    """The ratios to the first contender, each within one round."""
    return Figures.of([one[key] / other[key] for one, other in zip(own, first, strict=True)])


def table(names: Sequence[str], found: Sequence[Sequence[Answer]]) -> list[str]:
    """Lines of text: a head, and one line per contender."""
    heads = ("CPU s per epoch", "wall s per epoch", "CPU, ratio", "wall, ratio")
    wide = max(map(len, ["contender", *names])) + 2
    lines = [f"{'contender':{wide}}" + "".join(f"{head:24}" for head in heads) + "threads, network evaluations"]
    for name, own in zip(names, found, strict=True):
        cells = [Figures.of([each[key] for each in own]) for key in ("cpu", "wall")]
        cells += [ratios(own, found[0], key) for key in ("cpu", "wall")]
        counts = own[-1].get("evaluations") or {}
        done = ", ".join(f"{number} {what}" for what, number in counts.items()) or "not reported"
        lines.append(f"{name:{wide}}" + "".join(f"{cell!s:24}" for cell in cells) + f"{own[-1].get('threads')}, {done}")
    if len({own[-1].get("threads") for own in found}) > 1:
        lines.append("the contenders use different numbers of threads, so wall seconds do not compare programs")
    return lines


def ours(options: argparse.Namespace) -> dict[str, list[str]]:
    """The commands of our own workers, by the name of the contender."""
    variants = [[], *([["--compile"]] if options.compile else []), *([["--plain"]] if options.plain else [])]
    served = [("--serve", name) for name in options.ours] + [("--serve-scenes", name) for name in options.scenes]
    found = {}
    for kind, workload in served:
        for microbatch in options.microbatch:
            for variant in variants if kind == "--serve" else [[]]:
                parts = [workload, *([f"microbatch {microbatch}"] if len(options.microbatch) > 1 else [])]
                name = ", ".join([*parts, *(each.removeprefix("--") for each in variant)])
                size = ["--microbatch", str(microbatch)] if microbatch else []
                found[name] = [sys.executable, __file__, kind, workload, *size, "--images", str(options.images),
                               "--threads", str(options.threads), *variant]  # fmt: skip
    older = {
        f"{name}, {tag}": [*command, "--home", home] for tag, home in options.beside for name, command in found.items()
    }
    return older | found


def trainer_of(options: argparse.Namespace, home: Path) -> Trainer:
    """The trainer that a worker of ours runs, by the flowward in this folder."""
    sys.path[:0] = [str(home), str(home / "benchmarks")]
    import torch

    import flowward

    if Path(flowward.__file__).parents[1] != home.resolve():
        raise SystemExit(f"there is no flowward in {home}")
    torch.set_num_threads(options.threads)
    microbatch = options.microbatch[0]
    if options.serve_scenes:
        return built_in(options.serve_scenes, options.images, microbatch)
    import tiny_sd3

    if options.serve not in tiny_sd3.ENTRANTS:
        raise SystemExit(f"there is no workload '{options.serve}'; known: {', '.join(map(repr, tiny_sd3.ENTRANTS))}")
    trainer = tiny_sd3.trainer(options.serve, not options.plain, microbatch or MICROBATCH, options.compile)
    trainer.policy.prepare(list(tiny_sd3.PROMPTS))
    return trainer


def built_in(algorithm: str, images: int, microbatch: int | None) -> Trainer:
    """The built-in model in float32, with the usual settings of an algorithm and `images` per optimiser step."""
    from flowward import models, prompts, rewards
    from flowward.training import config
    from flowward.training.trainer import Trainer

    settings = config.settings_type(algorithm)()
    run = replace(settings.run, images_per_update=images, rollout_batch=images)
    run = replace(run, microbatch=microbatch or run.microbatch)
    policy = models.load(settings.model, precision="float32")
    return Trainer(settings.algorithm, policy, rewards.load(settings.reward), prompts.load(settings.prompts), run)


def serve(options: argparse.Namespace) -> None:
    """Our own worker: epochs of one workload until `quit`."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print, too
    trainer = trainer_of(options, Path(options.home))
    from flowward.training.bench import Recorder

    def epoch() -> Mapping[str, int]:
        recorder, counts = Recorder(trainer.policy), Counter[str]()
        trainer.step()
        recorder.restore()
        for call in recorder.calls:
            counts[call.what] += call.batch
        return counts

    answer(epoch, options.threads, sys.stdin, answers)


def answer(epoch: Callable[[], Mapping[str, int]], threads: int, words: IO[str], answers: IO[str]) -> None:
    """The worker's side: one JSON line per `epoch`, until `quit` or the end of the input."""
    for line in words:
        if line.strip() == "quit":
            return
        wall, cpu = time.perf_counter(), time.process_time()
        evaluations = epoch()
        spent = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        print(json.dumps({**spent, "evaluations": dict(evaluations), "threads": threads}), file=answers, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--worker", nargs=2, action="append", default=[], metavar=("NAME", "COMMAND"), help="another contender"
    )
    parser.add_argument("--ours", nargs="+", default=[], metavar="WORKLOAD", help="workloads of tiny_sd3.py")
    parser.add_argument("--scenes", nargs="+", default=[], metavar="ALGORITHM", help="train the built-in model")
    parser.add_argument("--images", type=int, default=144, help="built-in model: images per optimiser step")
    parser.add_argument(
        "--beside", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"),
        help="the same workload by another checkout of flowward",
    )  # fmt: skip
    parser.add_argument(
        "--microbatch", nargs="+", type=int, default=[None], help=f"ours: training points per pass (tiny: {MICROBATCH})"
    )
    parser.add_argument("--compile", action="store_true", help="ours: with compiled blocks, too")
    parser.add_argument("--plain", action="store_true", help="ours: with adapters beside their layers, too")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warm", type=int, default=2, help="epochs of each before the first round")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each contender")
    for name in ("--serve", "--serve-scenes"):
        parser.add_argument(name, metavar="WORKLOAD", help="be a worker of ours")
    parser.add_argument("--home", default=str(HOME), metavar="FOLDER", help="the checkout that a worker runs")
    options = parser.parse_args()
    if options.serve or options.serve_scenes:
        serve(options)
        return 0
    commands = {name: shlex.split(command) for name, command in options.worker} | ours(options)
    if not commands or options.rounds < 1:
        parser.error("name at least one contender with --worker, --ours or --scenes, and at least one round")
    if options.beside and len(ours(options)) != len(options.beside) + 1:
        parser.error("--beside compares one workload: ratios are to the first contender")
    print("CPU seconds per round: " + " | ".join(commands), flush=True)
    try:
        with ExitStack() as stack:
            workers = [stack.enter_context(started(name, own, options.threads)) for name, own in commands.items()]
            found = conducted(workers, options.rounds, options.warm, lambda line: print(line, flush=True))
    except WorkerError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(table(list(commands), found)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
