"""flowward train"""

from __future__ import annotations

import shlex
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import models, rewards
from ..system import launching
from ..system.terminal import visible
from ..training import config, config_files, inputs, recipes, trackers
from ..training.assembly import assembled, started
from ..training.folder import RunFolder, dumped
from ..training.hooks import Hooks
from ..training.record import refuse_other_kinds
from . import resuming, running
from .help import Option, Page
from .options import count_of_processes, every, parse, set_threads, switched, take
from .options import given as given_flag

START = (  # options that say what the defaults of the others are
    Option(
        "algorithm",
        "NAME",
        "algorithm, with settings tested here; `flowward algorithms` lists them (default: advantageflow)",
    ),
    Option("preset", "NAME", "settings of that algorithm (default: scenes; for a real model the first published one)"),
    Option("config", "FILE", "start from a recipe, or a run's config.yaml; repeat it: later files win"),
    Option("resume", "RUN|auto", "continue an interrupted run (auto: --output if it has begun, else start it)"),
    Option("changed-inputs", "", "with --resume: continue although prompts, reward code or images have changed"),
)
LOOKS = (  # options that end before a run begins
    Option("dry-run", "", "check everything, estimate memory and time, and end; no run folder is made"),
    Option("print-config", "", "print the resolved config.yaml, and end"),
)
PROCESSES = Option("processes", "N", "share the work among N processes, one CUDA device each (default: 1)")
HOOK = Option("hook", "FILE:NAME", "call this function with every finished step; may be repeated")
PAGE = Page(
    about="Post-train a flow model with online reinforcement learning. Start from an algorithm, a config file or a "
    "run; its values are the defaults shown here, and every option overrides one of them.",
    examples=(
        ("train --output runs/first", "post-train the built-in model, about seven minutes on a laptop"),
        ("train --algorithm flow_grpo --seed 1 --iterations 20", "another algorithm, a shorter run"),
        (
            "train --model stabilityai/stable-diffusion-3.5-medium --size 512 512 --prompts ocr --reward ocr "
            "--memory auto",
            "post-train Stable Diffusion 3.5 Medium to write text",
        ),
        ("train --config sd3.5-medium/flow_grpo-ocr --processes 8", "a published setting on 8 GPUs"),
        ("train --resume runs/first --iterations 100", "continue a run"),
        ("train --output runs/first --resume auto", "start a run, or continue it: for jobs that are restarted"),
    ),
    first=(
        *("model", "reward", "prompts", "output", "algorithm", "preset", "config", "resume", "iterations"),
        *(
            "images-per-update",
            "group-size",
            "learning-rate",
            "lora-rank",
            "size",
            "memory",
            "seed",
            "processes",
            "patience",
            "threads",
        ),
    ),
    beside=(*START, *LOOKS, PROCESSES, HOOK),
    title="Start, model, rewards and prompts",
)


def run(words: list[str]) -> int:
    given = shlex.join(["flowward", "train", *words])
    printed, words = switched(words, "print-config")
    dry, words = switched(words, "dry-run")
    words, said = resuming.resolved(words)
    processes, words = take(words, "processes")
    changed, words = resuming.changed_inputs(words)
    named, words = every(words, "hook")
    hooks = Hooks.load(named)
    settings, resume = chosen(words)  # refuses what it must before other processes start
    trackers.refuse_missing(settings.run.track)
    if changed and not (resume or said):
        raise ValueError("--changed-inputs is for runs that continue: name one with --resume")
    if printed:
        return _print_config(settings, named_output=resume or given_flag(words, "output") is not None)
    if dry:
        return _rehearse(settings, resume, processes)
    if said and resume:
        resuming.wait_for_end(settings.run.output)
    if (many := count_of_processes(processes)) > 1:
        if not resume:
            RunFolder.refuse(settings.run.output)
        where = [] if resume or given_flag(words, "output") else ["--output", str(settings.run.output)]
        again = [resuming.CHANGED] if changed and resume else []
        if said:
            print(said, flush=True)
        hooked = [f"--hook={name}" for name in named]
        return launching.launch(many, ["train", *words, *where, *again, *hooked])
    with launching.joined(settings.patience, settings.layout.context_parallel) as others:
        if said:
            print(said)
        command = given + (f" --processes {others}" if others > 1 else "")
        set_threads(settings.threads)
        return running.carried_out(started(settings, resume, changed), command, hooks)


def chosen(words: list[str], command: str = "train", page: Page = PAGE) -> tuple[Any, bool]:
    """Settings, and whether a run goes on."""
    algorithm, words = take(words, "algorithm")
    preset, words = take(words, "preset")
    files, words = every(words, "config")
    resume, words = take(words, "resume")
    if sum(choice is not None for choice in (algorithm, files or None, resume)) > 1:
        raise ValueError("--algorithm, --config and --resume exclude each other: each says what to start from")
    if preset and (files or resume):
        raise ValueError("--preset names settings of an algorithm; --config and --resume bring their own")
    named = {word.partition("=")[0] for word in words}
    given: dict[str, Any] = {}  # by a file
    if resume:
        default = _settings(RunFolder.open(Path(resume)).config(), named)
        default = replace(default, run=replace(default.run, output=Path(resume)))
    elif files:
        given = config_files.read([recipes.located(file) for file in files])
        default = _settings(given, named)
        if any((Path(file).parent / "checkpoints").is_dir() for file in files):  # a run's, whose folder is taken
            default = replace(default, run=replace(default.run, output=None))
    else:
        default = config.starting(algorithm or config.DEFAULT_ALGORITHM, preset, given_flag(words, "model"))
    flags = (name.removeprefix("--algorithm.") for name in named if name.startswith("--algorithm."))
    config.refuse_of_others(type(default.algorithm), (flag.partition(".")[0].replace("-", "_") for flag in flags))
    settings = parse(type(default), words, command, default, page)
    if resume and settings.run.output != Path(resume):
        raise ValueError(f"--resume goes on in its own folder, {resume}: leave out --output, or copy that folder first")
    refuse_other_kinds(settings.model, "train --resume")
    settings = _of_adapters(replace(settings, model=models.located(settings.model)), named, resume)
    unnamed = "--reward" not in named and not (settings.preferences or resume or files)
    if unnamed and _of_others(settings.model):
        raise ValueError("name a --reward: the default one judges images of the built-in world alone")
    if not resume and "--evaluation.rewards" not in named and "rewards" not in (given.get("evaluation") or {}):
        settings = _measured_by_reward(settings)
    if models.is_code(settings.model) and not resume and "--evaluation.prompts" not in named and not files:
        settings = replace(settings, evaluation=_of_same_prompts(settings))
    if "--evaluation.sampler.guidance" not in named and not resume and not config.names_guidance(given):
        settings = config.measured_alike(settings)
    for name in ("reward", "prompts", "prompt_column", "prompt_weights"):
        flag = "--" + name.replace("_", "-")
        if settings.preferences and (flag in named or getattr(settings, name) != getattr(config.Settings, name)):
            raise ValueError(f"preferences bring prompts and a reward of their own: leave out {flag}")
    settings, unplaced = inputs.located(settings, default if resume else None), settings
    if settings.run.output is None:
        name = time.strftime(f"{unplaced.model}-%Y%m%d-%H%M%S").replace("/", "-")
        settings = replace(settings, run=replace(settings.run, output=Path("runs") / name))
    return settings, resume is not None


def _of_same_prompts(settings: Any) -> Any:
    """The evaluation, on the prompts of training."""
    how = settings.evaluation
    return replace(how, prompts=settings.prompts, prompt_column=how.prompt_column or settings.prompt_column)


def _of_others(model: str) -> bool:
    """Whether a model is not one of the built-in world, whose rewards judge nothing else."""
    return models.is_pipeline(model) or models.is_code(model)


def _measured_by_reward(settings: Any) -> Any:
    """The settings with the reward that is optimised as the headline of evaluations.

    On the built-in model, strict accuracy stays beside it.
    """
    own = tuple(dict.fromkeys(rewards.weighted(item)[0] for item in settings.reward))
    pipeline = _of_others(settings.model)
    if settings.preferences or (settings.reward == config.Settings.reward and not pipeline):
        return settings
    scores = own if pipeline else tuple(dict.fromkeys((*own, *settings.evaluation.rewards)))
    how = settings.evaluation
    usual = models.is_code(settings.model) and how.guard == type(settings)().evaluation.guard  # of the built-in world
    return replace(settings, evaluation=replace(how, rewards=scores, guard=() if usual else how.guard))


def _print_config(settings: Any, named_output: bool) -> int:
    """The name of a folder that was made up for this run is left out: the next run gets its own."""
    found = config.to_dict(settings)
    if not named_output:
        found["run"]["output"] = None
    print(dumped(found), end="")
    return 0


def _rehearse(settings: Any, resume: bool, processes: str | None) -> int:
    """Raises ValueError if the settings do not fit together, as a run would."""
    from ..training import rehearsal

    if resume or processes:
        raise ValueError(
            f"--dry-run estimates a new run on one device: leave out {'--resume' if resume else '--processes'}"
        )
    RunFolder.refuse(settings.run.output)
    set_threads(settings.threads)
    made = assembled(settings)
    for line in [*made.notes, *(f"warning: {warning}" for warning in made.warnings)]:
        print(visible(line))
    for line in rehearsal.rehearsed(made).lines():
        print(visible(line))
    return 0


def _of_adapters(settings: Any, named: set[str], resume: str | None) -> Any:
    """The settings without an alpha and layers of the preset, if all weights are to be trained (--lora-rank none).

    Raises:
        ValueError: flags about LoRA contradict each other, or what a run started from.
    """
    named = {flag.replace("_", "-") for flag in named}
    flags = [flag for flag in ("--lora-rank", "--lora-alpha", "--lora-targets") if flag in named]
    if settings.init_lora and flags and not resume:
        raise ValueError(f"rank, alpha and layers follow --init-lora {settings.init_lora}: leave out {flags[0]}")
    changed = [flag for flag in ("--init-lora", "--init-lora-sha256", "--reference") if flag in named]
    if resume and changed:
        raise ValueError(f"a run keeps the LoRA that it started from, and its reference: leave out {changed[0]}")
    if flags == ["--lora-rank"] and settings.lora_rank is None:
        settings = replace(settings, lora_alpha=None, lora_targets=None)
    settings.adapters  # noqa: B018 (refuses impossible values)
    return settings


def _settings(given: dict[str, Any], named: set[str]) -> config.Settings:
    """Those of a config.yaml. What a run from Python could not write down has to be named with a flag.

    Raises:
        ValueError: it is not, or something is unknown or of the wrong type.
    """
    for name in [name for name in ("reward", "prompts") if name in given and given[name] is None]:
        if f"--{name}" not in named:
            raise ValueError(f"this run was started from Python, with a {name} of its own: name one with --{name}")
        given = {key: value for key, value in given.items() if key != name}
    return config.from_dict(given)
