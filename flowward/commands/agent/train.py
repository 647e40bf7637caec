"""flowward agent train"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path

from ...agent import config
from ...agent.config import Settings
from ...system import launching
from ...system.terminal import visible
from ...training import config_files, recipes, trackers
from ...training.assembly import started
from ...training.folder import RunFolder, dumped
from ...training.hooks import Hooks
from .. import resuming, running
from ..help import Option, Page
from ..options import count_of_processes, every, given, parse, set_threads, switched, take

START = (
    Option(
        "preset", "NAME", "start from these settings: world, qwen2.5-7b (default: world; for another --model the last)"
    ),
    Option("config", "FILE", "start from a run's config.yaml; repeat it: later files win"),
    Option("resume", "RUN|auto", "continue an interrupted run (auto: --output if it has begun, else start it)"),
    Option("changed-inputs", "", "with --resume: continue although questions, prompts or reward code have changed"),
)
LOOKS = (
    Option("dry-run", "", "load and check everything, and end; no run folder is made"),
    Option("print-config", "", "print the resolved config.yaml, and end"),
)
PROCESSES = Option("processes", "N", "share the episodes among N processes, one CUDA device each (default: 1)")
HOOK = Option("hook", "FILE:NAME", "call this function with every finished step; may be repeated")
PAGE = Page(
    about="Train the planner of a language agent with AgentFlow: planner, executor, verifier and generator work on a "
    "question over several turns, the outcome is compared within the group of episodes of the same question, and every "
    "turn of the planner learns from it. Start from a preset, a config file or a run; its values are the defaults.",
    examples=(
        ("agent train --output runs/agent", "the built-in world, two minutes on a laptop"),
        (
            "agent train --model Qwen/Qwen2.5-7B-Instruct --questions train:mine.jsonl "
            "--evaluation.questions held-out:mine.jsonl --tools calculator search:docs --lora-rank 64",
            "your own questions, with a calculator and your documents",
        ),
        (
            "agent train --model my/model --questions mine.jsonl --tools python --executor http://host:8000/v1#qwen "
            "--verifier same",
            "every module may have its own model",
        ),
        ("agent train --resume runs/agent --iterations 200", "continue a run"),
    ),
    first=(
        *("model", "questions", "reward", "tools", "executor", "verifier", "generator", "output", "preset", "resume"),
        *("iterations", "questions-per-update", "group-size", "learning-rate", "lora-rank", "max-turns", "max-tokens"),
        *("seed", "processes", "threads"),
    ),
    beside=(*START, *LOOKS, PROCESSES, HOOK),
    title="Agent, questions and rewards",
)


def run(words: list[str]) -> int:
    typed = shlex.join(["flowward", "agent", "train", *words])
    printed, words = switched(words, "print-config")
    dry, words = switched(words, "dry-run")
    words, said = resuming.resolved(words, config.KIND)
    processes, words = take(words, "processes")
    many = count_of_processes(processes)
    changed, words = resuming.changed_inputs(words)
    named, words = every(words, "hook")
    hooks = Hooks.load(named)
    settings, resume = chosen(words)
    trackers.refuse_missing(settings.run.track)
    if changed and not (resume or said):
        raise ValueError("--changed-inputs is for runs that continue: name one with --resume")
    if printed:
        found = config.to_dict(settings)
        if given(words, "output") is None and not resume:
            found["run"]["output"] = None
        print(dumped(found), end="")
        return 0
    if dry:
        if resume or processes:
            raise ValueError(
                f"--dry-run checks a new run in one process: leave out {'--resume' if resume else '--processes'}"
            )
        return _checked(settings)
    if many > settings.run.samples:
        raise ValueError(
            f"{settings.run.samples} episodes per iteration are too few for {many} processes: use fewer --processes or "
            "more --questions-per-update"
        )
    if said and resume and settings.run.output:
        resuming.wait_for_end(settings.run.output)
    if many > 1:
        if not resume and settings.run.output:
            RunFolder.refuse(settings.run.output)
        where = [] if resume or given(words, "output") else ["--output", str(settings.run.output)]
        again = [resuming.CHANGED] if changed and resume else []
        if said:
            print(said, flush=True)
        hooked = [f"--hook={name}" for name in named]
        return launching.launch(many, ["agent", "train", *words, *where, *again, *hooked])
    from ...agent.assembly import assembled  # after the options, so that --help does not wait for it

    with launching.joined(settings.patience) as others:
        if said:
            print(said)
        command = typed + (f" --processes {others}" if others > 1 else "")
        set_threads(settings.threads)
        opened = started(settings, resume, changed, assembled)
        return running.carried_out(opened, command, hooks, "agent train")


def chosen(words: list[str]) -> tuple[Settings, bool]:
    """Settings, and whether a run goes on."""
    preset, words = take(words, "preset")
    files, words = every(words, "config")
    resume, words = take(words, "resume")
    if sum(choice is not None for choice in (preset, files or None, resume)) > 1:
        raise ValueError("--preset, --config and --resume exclude each other: each says what to start from")
    if resume:
        default = config.from_dict(RunFolder.open(Path(resume)).config())
        default = replace(default, run=replace(default.run, output=Path(resume)))
    elif files:
        default = config.from_dict(config_files.read([recipes.located(file) for file in files]))
        if any((Path(file).parent / "checkpoints").is_dir() for file in files):  # a run's, whose folder is taken
            default = replace(default, run=replace(default.run, output=None))
    else:
        default = config.starting(preset, given(words, "model"))
    settings: Settings = parse(Settings, words, "agent train", default, PAGE)
    if resume and settings.run.output != Path(resume):
        raise ValueError(f"--resume goes on in its own folder, {resume}: leave out --output, or copy that folder first")
    settings.adapters  # noqa: B018 (refuses impossible values)
    settings = config.located(settings)
    if settings.run.output is None:
        name = time.strftime(f"agent-{Path(settings.model).name}-%Y%m%d-%H%M%S")
        settings = replace(settings, run=replace(settings.run, output=Path("runs") / name))
    return settings, resume is not None


def _checked(settings: Settings) -> int:
    """Raises ValueError if the settings do not fit together, as a run would."""
    from ...agent.assembly import assembled

    if settings.run.output:
        RunFolder.refuse(settings.run.output)
    set_threads(settings.threads)
    made = assembled(settings)
    print(visible(made.introduction))
    for line in [*made.notes, *(f"warning: {warning}" for warning in made.warnings)]:
        print(visible(line))
    run = settings.run
    print(
        f"{run.iterations} iterations of {run.groups} questions x {run.group_size} episodes, "
        f"{run.updates_per_iteration} updates each; nothing was written"
    )
    return 0
