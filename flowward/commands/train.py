"""flowward train"""

from __future__ import annotations

import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from .. import models, prompts, rewards
from ..algorithms import ALGORITHMS
from ..algorithms.presets import published
from ..evaluation import outcome
from ..evaluation.evaluate import Evaluator, load_rewards
from ..evaluation.leakage import leak
from ..pages import report
from ..process.policy import Policy
from ..system import distributed
from ..training import config, fit
from ..training.datasets import Exemplars, Preferences
from ..training.folder import RunFolder, read_yaml
from ..training.log import TrainProgress
from ..training.trainer import Trainer
from .options import given as given_flag
from .options import parse, set_threads, take

SAME_SIGNAL = 1.0  # seconds within which a signal is the one before it, come by another way
ABOUT = """Post-train a flow model.

One of these sets the defaults of all that follows, which are shown for it:
  --algorithm NAME [--preset NAME]   vetted or published settings; `flowward algorithms` lists them
  --config FILE                      a recipe, or the config.yaml of a run
  --resume RUN                       go on with a run

--processes N shares the work among N processes, on a CUDA device each."""
BESIDE = ("algorithm", "preset", "config", "resume", "processes")  # options that say what the others are


def run(words: list[str]) -> int:
    given = shlex.join(["flowward", "train", *words])
    processes, words = take(words, "processes")
    settings, resume = chosen(words)  # refuses what it must before other processes start
    if processes and not (processes.isdecimal() and int(processes) >= 1):
        raise ValueError(f"--processes must be a whole number of at least 1, not '{processes}'")
    if processes and int(processes) > 1:
        where = [] if resume or given_flag(words, "output") else ["--output", str(settings.run.output)]
        return distributed.launch(int(processes), ["train", *words, *where])
    with distributed.joined() as others:
        return _train(settings, resume, given + (f" --processes {others}" if others > 1 else ""))


def chosen(words: list[str], command: str = "train", about: str = ABOUT) -> tuple[Any, bool]:
    """Settings, and whether a run goes on."""
    algorithm, words = take(words, "algorithm")
    preset, words = take(words, "preset")
    file, words = take(words, "config")
    resume, words = take(words, "resume")
    if sum(choice is not None for choice in (algorithm, file, resume)) > 1:
        raise ValueError("--algorithm, --config and --resume exclude each other: each says what to start from")
    if preset and (file or resume):
        raise ValueError("--preset names settings of an algorithm; --config and --resume bring their own")
    named = {word.partition("=")[0] for word in words}
    given: dict[str, Any] = {}  # by a file
    if resume:
        default = _settings(RunFolder.open(Path(resume)).config(), named)
        default = replace(default, run=replace(default.run, output=Path(resume)))
    elif file:
        given = read_yaml(Path(file))
        default = _settings(given, named)
        default = replace(default, run=replace(default.run, output=None))
    else:
        default = _default(algorithm or config.DEFAULT_ALGORITHM, preset, given_flag(words, "model"))
    settings = parse(type(default), words, command, default, about, BESIDE)
    if resume and settings.run.output != Path(resume):
        raise ValueError(f"--resume goes on in its own folder, {resume}: leave out --output, or copy that folder first")
    if models.is_pipeline(settings.model) and not (resume or file):
        if "--reward" not in named and not settings.preferences:
            raise ValueError("name a --reward: the default one judges images of the built-in world alone")
        if "--evaluation.rewards" not in named:
            own = tuple(rewards.weighted(item)[0] for item in settings.reward)
            settings = replace(settings, evaluation=replace(settings.evaluation, rewards=own))
    if "--evaluation.sampler.guidance" not in named and not resume and not config.names_guidance(given):
        settings = config.measured_alike(settings)
    for name in ("reward", "prompts", "prompt_weights"):
        flag = "--" + name.replace("_", "-")
        if settings.preferences and (flag in named or getattr(settings, name) != getattr(config.Settings, name)):
            raise ValueError(f"preferences bring prompts and a reward of their own: leave out {flag}")
    if settings.run.output is None:
        name = time.strftime(f"{settings.model}-%Y%m%d-%H%M%S").replace("/", "-")
        settings = replace(settings, run=replace(settings.run, output=Path("runs") / name))
    return settings, resume is not None


def _default(algorithm: str, preset: str | None, model: str | None) -> Any:
    """A preset's settings: the named one, or that of scenes, or for a real model the first that was published.

    That one then takes the time grid of the model, which need not be the published one's.
    """
    if preset or not models.is_pipeline(model or "scenes"):
        return config.settings_type(algorithm, preset or "scenes")()
    default = config.settings_type(algorithm, published(algorithm))()
    rollout = replace(default.algorithm.rollout, grid="model", shift=1.0)
    few = replace(default.evaluation, images=60)
    return replace(default, algorithm=replace(default.algorithm, rollout=rollout), evaluation=few)


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


def _train(settings: Any, resume: bool, command: str) -> int:
    set_threads(settings.threads)
    run = settings.run
    reward: Any = rewards.load(settings.reward, settings.reward_options)
    texts = prompts.load(settings.prompts).weighted(settings.prompt_weights)
    held_out = prompts.load(settings.evaluation.prompts)
    how = settings.evaluation
    watched = {rewards.weighted(name)[0] for name in how.scores}
    shared = [each for each in settings.reward_options if rewards.owner(each) in watched]
    measured = load_rewards(how.scores, [*shared, *how.reward_options])
    policy = models.load(settings.model, settings.lora_rank, settings.precision, run.seed, settings.loading)
    settings = replace(settings, precision=policy.precision)  # the run goes on in the one that it began with
    collect = graft = None
    if settings.preferences:
        if run.group_size != 2:
            raise ValueError(f"preferences come in pairs: give --group-size 2, not {run.group_size}")
        given = Preferences.load(settings.preferences)
        levels = settings.algorithm.rollout.bound(policy.times).levels
        given.refuse(settings.algorithm.points, levels)
        reward, texts = given.reward, given.prompts
        collect = given.collector(policy, run.seed)
    if settings.exemplars:
        if not getattr(settings.algorithm, "takes_exemplars", False):
            known = [name for name, kind in ALGORITHMS.items() if getattr(kind, "takes_exemplars", False)]
            raise ValueError(f"exemplars are for {', '.join(known)}: the other algorithms have no rule for them")
        others = Exemplars.load(settings.exemplars, settings.exemplar_share, settings.exemplars_per_group)
        others.refuse(texts, run.group_size)
        graft = others.grafter(policy, run.seed)
    for each in (texts, held_out):
        try:
            policy.refuse(list(each))
        except ValueError as error:
            raise ValueError(f"prompts {each.name}: {error}") from error
    with distributed.first():  # it fills the cache on disk, which the others read
        policy.prepare([*texts, *held_out])
    rewards.refuse(reward, texts.texts, texts.about(range(len(texts))))
    for own in measured.values():
        rewards.refuse(own, held_out.texts, held_out.about(range(len(held_out))))
    trainer = Trainer(settings.algorithm, policy, reward, texts, run, collect, graft)
    if limit := fit.limit(run.memory, policy.device):
        run, said = fit.fitted(trainer, limit)
        print(said)
        least = distributed.merged({"sampled": run.rollout_batch, "trained": run.microbatch}, min)
        run = replace(run, rollout_batch=int(least["sampled"]), microbatch=int(least["trained"]))
        settings = replace(settings, run=run)
        trainer = Trainer(settings.algorithm, policy, reward, texts, run, collect, graft)
    if resume and (state := RunFolder.open(run.output).state(*trainer.state_dict())):
        trainer.load_state_dict(state)
    stopped, evaluator = False, Evaluator(policy, settings.evaluation, held_out, rewards=measured)
    sources = ("" if settings.preferences else settings.prompts, how.prompts)
    warnings = [leaked] if (leaked := leak(texts, held_out, how.chosen(held_out), sources)) else []
    drawn = settings.algorithm.rollout.guidance
    if not settings.preferences and (unlike := how.unlike(drawn)):
        warnings.append(f"{unlike} (--evaluation.sampler.guidance {drawn:g} for the same)")
    with (
        _folder(run.output, config.to_dict(settings), trainer, resume) as folder,
        TrainProgress(run, trainer.iteration, run.output) as progress,
        _stop_signals() as asked,
    ):
        done = trainer.iteration
        begins = f"going on after iteration {done}" if done else f"measuring on {held_out.name} first"
        progress.say(f"model {policy.name}, {len(texts)} prompts; {begins}")
        for remark in [*trainer.rollout.remarks(), *([] if settings.preferences else _of_guidance(policy, drawn))]:
            progress.say(remark)
        for warning in warnings:
            progress.say(f"warning: {warning}")
        with closing(trainer.steps(evaluator, folder, warnings)) as steps:
            for step in steps:
                progress.show(step)
                if distributed.any_of(asked()):
                    stopped = trainer.iteration < run.iterations  # after the last one there is nothing to go on with
                    break
    if folder:
        folder.write_summary(command, finished=not stopped)
        print(outcome.sentence(outcome.of(folder.lines())))
        print(f"report: {report.write(folder.path)}")
    if stopped:
        several = ["--processes", str(distributed.count())] if distributed.count() > 1 else []
        words = shlex.join(["flowward", "train", "--resume", str(run.output), *several])
        print(f"stopped and saved; go on with: {words}")
    distributed.wait()  # torchrun ends the first process when another has ended with a code, even while it saves
    return 130 if stopped else 0


def _of_guidance(policy: Policy, guidance: float) -> list[str]:
    """What the scale that images are drawn with costs, and where it is not what the model was made for."""
    lines = [f"{remark} (--algorithm.rollout.guidance)"] if (remark := policy.remark(guidance)) else []
    if (many := policy.evaluations(guidance)) > 1:
        lines.append(f"guidance {guidance:g} asks the network {many} times for every step: with the prompt and without")
    return lines


@contextmanager
def _folder(path: Path, settings: dict[str, Any], trainer: Trainer, resume: bool) -> Iterator[RunFolder | None]:
    """A new one, or that of a run that goes on, without what came after its checkpoint; None if it is for another
    process to write."""
    if distributed.rank():
        yield None
        return
    folder = RunFolder.open(path) if resume else RunFolder.create(path, settings)
    with folder.held():
        if resume:
            folder.forget_after(trainer.iteration - (trainer.iteration == 0))
            folder.write_config(settings)
        yield folder


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only ask to stop: the yielded function says whether one came.

    A second one raises KeyboardInterrupt. One that follows within a second is the same: where several processes share
    a run, each may get it from the terminal (or from a scheduler) and from the process that started it.
    """
    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        if asked and time.monotonic() - asked[-1] < SAME_SIGNAL:
            return
        asked.append(time.monotonic())
        if len(asked) > 1:
            raise KeyboardInterrupt
        if distributed.rank() == 0:
            print("\nstopping after this iteration (once more to stop at once) ...", file=sys.stderr, flush=True)

    previous = {name: signal.signal(name, ask) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
