"""flowward.fit: train from Python in one call."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..evaluation import outcome
from ..evaluation.outcome import counted
from ..pages import report
from ..system import strict_json
from ..training import assembly
from ..training import teachers as teaching
from ..training.folder import RunFolder
from ..training.hooks import Hook, Hooks
from ..training.log import TrainProgress
from ..training.metrics import Step
from ..training.run import Run
from ..training.trainer import Trainer
from . import arguments, measuring
from .arguments import Arguments
from .fitted import PROMPTS, Fitted, with_prompts
from .interrupts import deferred


class Scratch(RunFolder):
    """The temporary folder of a run without output: the weights stay in memory."""

    keeps = False


def fit(
    algorithm: Any,
    policy: Any,
    reward: Any,
    prompts: Any,
    run: Run | None = None,
    *,
    teachers: Mapping[str, str | Path] | None = None,
    evaluation: Any = True,
    output: str | Path | None = None,
    hook: Hook | Sequence[Hook] | None = None,
    progress: bool = True,
    **settings: Any,
) -> Fitted:
    """Train, and return the trained model with the record of its run.

    An interrupt (Ctrl-C, or the stop button of a notebook) ends the run after the current iteration, a second one at
    once; `fit` then returns what is trained so far. If a reward or a hook fails, the error has it as its `run`.

    Args:
        algorithm: a name, with settings tested here (`flowward algorithms`), or an algorithm such as AWM().
        policy: the name of a model, or a model from `flowward.load`.
        reward: the name of a reward, a function of (images, prompts) or (images, prompts, metadata), or a list of both.
        prompts: the name of a prompt set, a file, a list of texts, or a PromptSet.
        run: settings of the loop. Other keywords are settings of it, too: iterations=20, group_size=8.
        teachers: for `opd`, the run or LoRA that teaches each category of prompts: {"position": "runs/position"}.
        evaluation: True measures before and after training, and every `evaluate_every` iterations, on held-out prompts
            if the prompt set has some, else on the prompts of training. False: never. A mapping changes this, such as
            {"images": 240, "prompts": "mine.txt"}. Or an Evaluation.
        output: run folder, which keeps checkpoints and gets a report. None: everything stays in memory, except metrics
            and sample grids, which are in a temporary folder.
        hook: a function that is called with every finished Step, or several.
        progress: show progress, on a terminal or in a notebook.

    Raises:
        ValueError: an argument is of a wrong kind, or the arguments do not fit together.
        RewardError, HookError, TrainingError: the run cannot continue.
        OSError: the run folder cannot be written.
    """
    hooks = Hooks.of(hook)
    parts = Arguments.read(algorithm, policy, reward, prompts, run, output, settings)
    usual = measuring.evaluator(parts, evaluation)
    evaluator = None if evaluation is False else usual
    if parts.loaded:
        parts.policy.prepare([*parts.prompts, *usual.prompts])
    taught, say = teaching.of(teachers or {}), print if progress else _silent
    trainer, config, remarks = assembly.of_python(*parts.main, evaluator, say, taught)
    temporary = None if parts.run.output else TemporaryDirectory(prefix="flowward-")
    folder = _folder(parts, config | parts.named, temporary)
    fitted = Fitted(trainer, folder, usual, folder.config(), parts.loaded, temporary)
    try:
        with folder.held():
            _train(
                fitted, trainer, folder, hooks, trainer.steps(evaluator, folder, remarks), remarks if progress else None
            )
    except Exception as error:
        error.run = fitted  # type: ignore[attr-defined]
        error.add_note("what was trained so far is in the attribute `run` of this error")
        raise
    return fitted


def _folder(parts: Arguments, config: dict[str, Any], temporary: TemporaryDirectory[str] | None) -> RunFolder:
    """A new run folder. Prompts that were given as a list are written beside, so that the run can be resumed."""
    kind, path = (Scratch, Path(temporary.name)) if temporary else (RunFolder, Path(str(parts.run.output)))
    folder = kind.create(path, config)
    if rows := arguments.listed(parts.prompts):
        folder.write_text(PROMPTS, "".join(strict_json.dumps(row) + "\n" for row in rows))
        folder.write_config(with_prompts(config, path))
    return folder


def _train(
    fitted: Fitted,
    trainer: Trainer,
    folder: RunFolder,
    hooks: Hooks,
    steps: Generator[Step],
    remarks: Sequence[str] | None,
) -> None:
    """Train to the end, or until an interrupt. The warnings are printed first, and progress; None: nothing is.

    Raises:
        KeyboardInterrupt: an interrupt came while the weights were changed, so they are not whole.
    """
    kept = not isinstance(folder, Scratch)
    with (
        TrainProgress(trainer.run, 0, folder.path if kept else None) if remarks is not None else nullcontext() as shown
    ):
        say = shown.say if shown else _silent
        say(f"model {trainer.policy.name}, {len(trainer.prompts):,} prompts")
        for note in (
            *trainer.policy.notes,
            *trainer.rollout.remarks(),
            *(f"warning: {each}" for each in remarks or ()),
        ):
            say(note)
        with deferred(say) as asked, closing(steps):
            try:
                for step in steps:
                    if shown:
                        shown.show(step)
                    hooks(step)
                    if asked():
                        break
            except KeyboardInterrupt:
                if not trainer.sound:
                    raise
        if fitted.stopped:
            how = f"; go on with: flowward train --resume {folder.path}" if kept else ""
            say(f"stopped after {counted(fitted.iterations, 'iteration')}{how}")
    folder.write_summary("", finished=not fitted.stopped)
    if evaluations := outcome.of(folder.lines()):
        say(outcome.sentence(evaluations))
    if kept:
        say(f"report: {report.write(folder.path)}")


def _silent(text: str) -> None:
    """Without progress, nothing is printed."""
