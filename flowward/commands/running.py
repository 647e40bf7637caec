"""Carrying out a run: progress on the terminal, the report after each evaluation, and stopping by a signal."""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager

from ..evaluation import outcome
from ..pages import report
from ..system import distributed
from ..system.terminal import visible
from ..training.assembly import Ready
from ..training.folder import RunFolder
from ..training.hooks import Hooks
from ..training.log import TrainProgress

SAME_SIGNAL = 1.0  # seconds within which a signal is the one before it, come by another way


def carried_out(
    opened: AbstractContextManager[tuple[Ready, RunFolder | None]], command: str, hooks: Hooks, program: str = "train"
) -> int:
    """Train to the end of the run, or until a signal asks to stop. Returns the exit code.

    Args:
        opened: from `assembly.started`.
        command: the whole command line, for the report.
        hooks: are called with every finished step.
        program: the command that goes on with a stopped run.
    """
    with opened as (made, folder):
        stopped = _steps(made, folder, hooks)
        if folder:
            folder.write_summary(command, finished=not stopped)
            print(visible(outcome.sentence(outcome.of(folder.lines()))))
            print(visible(f"report: {report.write(folder.path)}"))
    run = made.settings.run
    if stopped:
        print(visible(f"stopped and saved; go on with: {_again(program, str(run.output))}"))
    distributed.wait()  # torchrun ends the first process when another has ended with a code, even while it saves
    return 130 if stopped else 0


def _again(program: str, output: str) -> str:
    """The command that goes on with a run."""
    if distributed.machines() > 1:
        return f"the same torchrun command on every machine, with {shlex.join(['--resume', output])}"
    several = ["--processes", str(distributed.count())] if distributed.count() > 1 else []
    return shlex.join(["flowward", *program.split(), "--resume", output, *several])


def _steps(made: Ready, folder: RunFolder | None, hooks: Hooks) -> bool:
    """Train. Returns whether the run was stopped before its end."""
    run, trainer = made.settings.run, made.trainer
    with TrainProgress(run, trainer.iteration, run.output) as progress, _stop_signals() as asked:
        _begin(made, progress)
        with closing(trainer.steps(made.evaluator, folder, made.warnings)) as steps:
            for step in steps:
                progress.show(step)
                hooks(step)
                if folder and step.evaluation:
                    _write_report(folder, progress)
                if trainer.stopping:
                    break
                if distributed.any_of(bool(asked())):
                    if step.evaluation or not distributed.any_of(asked() == signal.SIGINT):
                        return trainer.iteration < run.iterations  # after the last one there is nothing to go on with
                    trainer.stopping = True
    return trainer.iteration < run.iterations


def _write_report(folder: RunFolder, progress: TrainProgress) -> None:
    """The report so far. Training goes on without it; the one at the end says what is wrong."""
    try:
        report.write(folder.path)
    except (OSError, ValueError) as error:
        progress.say(f"warning: no report after this evaluation: {error}")


def _begin(made: Ready, progress: TrainProgress) -> None:
    """What is worth knowing before the first iteration."""
    progress.say(made.introduction)
    for note in made.notes:
        progress.say(note)
    for warning in made.warnings:
        progress.say(f"warning: {warning}")


@contextmanager
def _stop_signals() -> Iterator[Callable[[], int]]:
    """Inside, SIGINT and SIGTERM only ask to stop: the yielded function returns the first one that came, or 0.

    A second one raises KeyboardInterrupt. One that follows within a second is the same: where several processes share
    a run, each may get it from the terminal (or from a scheduler) and from the process that started it.
    """
    asked: list[float] = []
    first: list[int] = []

    def ask(number: int, frame: object) -> None:
        if asked and 0 <= time.monotonic() - asked[-1] < SAME_SIGNAL:
            return
        asked.append(time.monotonic())
        first.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        if distributed.rank() == 0:
            then = " and an evaluation" if number == signal.SIGINT else ""
            print(f"\nstopping after this iteration{then} (once more to stop at once) ...", file=sys.stderr, flush=True)

    previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: first[0] if first else 0
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
