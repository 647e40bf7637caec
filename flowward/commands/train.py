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

from .. import config, fit, models, outcome, prompts, report, rewards
from ..algorithms import ALGORITHMS
from ..datasets import Exemplars, Preferences
from ..evaluate import Evaluator
from ..folder import RunFolder, read_yaml
from ..log import TrainProgress
from ..presets import published
from ..trainer import Trainer
from .options import given as given_flag
from .options import parse, set_threads, take


def run(words: list[str]) -> int:
    given = shlex.join(["flowward", "train", *words])
    algorithm, words = take(words, "algorithm")
    preset, words = take(words, "preset")
    file, words = take(words, "config")
    resume, words = take(words, "resume")
    if sum(choice is not None for choice in (algorithm, file, resume)) > 1:
        raise ValueError("--algorithm, --config and --resume exclude each other: each says what to start from")
    if preset and (file or resume):
        raise ValueError("--preset names settings of an algorithm; --config and --resume bring their own")
    named = {word.partition("=")[0] for word in words}
    if resume:
        default = _settings(RunFolder.open(Path(resume)).config(), named)
        default = replace(default, run=replace(default.run, output=Path(resume)))
    elif file:
        default = _settings(read_yaml(Path(file)), named)
        default = replace(default, run=replace(default.run, output=None))
    else:
        default = _default(algorithm or config.DEFAULT_ALGORITHM, preset, given_flag(words, "model"))
    about = (
        "Post-train a flow model. --algorithm NAME (with --preset NAME), --config RUN/config.yaml or --resume RUN "
        "sets what follows."
    )
    settings = parse(type(default), words, "train", default, about)
    if models.is_pipeline(settings.model) and not (resume or file):
        if "--reward" not in named and not settings.preferences:
            raise ValueError("name a --reward: the default one judges images of the built-in world alone")
        if "--evaluation.rewards" not in named:
            own = tuple(item.partition("=")[0] for item in settings.reward)
            settings = replace(settings, evaluation=replace(settings.evaluation, rewards=own))
    for name in ("reward", "prompts", "prompt_weights"):
        flag = "--" + name.replace("_", "-")
        if settings.preferences and (flag in named or getattr(settings, name) != getattr(config.Settings, name)):
            raise ValueError(f"preferences bring prompts and a reward of their own: leave out {flag}")
    if settings.run.output is None:
        name = time.strftime(f"{settings.model}-%Y%m%d-%H%M%S").replace("/", "-")
        settings = replace(settings, run=replace(settings.run, output=Path("runs") / name))
    return _train(settings, resume is not None, given)


def _default(algorithm: str, preset: str | None, model: str | None) -> Any:
    """A preset's settings: the named one, or that of scenes, or for a real model the first that was published.

    That one then takes the time grid of the model, which need not be the published one's.
    """
    if preset or not models.is_pipeline(model or "scenes"):
        return config.settings_type(algorithm, preset or "scenes")()
    default = config.settings_type(algorithm, published(algorithm))()
    rollout = replace(default.algorithm.rollout, grid="model", shift=1.0)
    few = replace(default.evaluation, images=60, batch=10)
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
    measured = rewards.load(settings.evaluation.rewards)
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
        collect = given.collector(policy, run.seed, levels)
    if settings.exemplars:
        if not getattr(settings.algorithm, "takes_exemplars", False):
            known = [name for name, kind in ALGORITHMS.items() if getattr(kind, "takes_exemplars", False)]
            raise ValueError(f"exemplars are for {', '.join(known)}: the other algorithms have no rule for them")
        others = Exemplars.load(settings.exemplars, settings.exemplar_share, settings.exemplars_per_group)
        others.refuse(texts.texts, run.group_size)
        graft = others.grafter(policy, run.seed)
    for each in (texts, held_out):
        policy.refuse(list(each.texts))
    policy.prepare([*texts.texts, *held_out.texts])
    rewards.refuse(reward, texts.texts, texts.metadata)
    rewards.refuse(measured, held_out.texts, held_out.metadata)
    trainer = Trainer(settings.algorithm, policy, reward, texts, run, collect, graft)
    if run.memory:
        run, said = fit.fitted(trainer, run.memory * 1e9)
        print(said)
        settings = replace(settings, run=run)
        trainer = Trainer(settings.algorithm, policy, reward, texts, run, collect, graft)
    if resume:
        folder = RunFolder.open(run.output)
        if state := folder.state(*trainer.state_dict()):
            trainer.load_state_dict(state)
        folder.forget_after(trainer.iteration - (trainer.iteration == 0))
        folder.write_config(config.to_dict(settings))
    else:
        folder = RunFolder.create(run.output, config.to_dict(settings))
    stopped = False
    with TrainProgress(run, trainer.iteration, folder.path) as progress, _stop_signals() as asked:
        progress.say(f"model {policy.name}, {len(texts)} prompts; measuring on {held_out.name} first")
        for remark in trainer.rollout.remarks():
            progress.say(remark)
        with closing(trainer.steps(Evaluator(policy, settings.evaluation, held_out), folder)) as steps:
            for step in steps:
                progress.show(step)
                if stopped := asked():
                    break
    folder.write_summary(command, finished=not stopped)
    print(outcome.sentence(outcome.of(folder.lines())))
    print(f"report: {report.write(folder.path)}")
    if stopped:
        print(f"stopped and saved; go on with: flowward train --resume {shlex.quote(str(folder.path))}")
        return 130
    return 0


@contextmanager
def _stop_signals() -> Iterator[Callable[[], bool]]:
    """Inside, SIGINT and SIGTERM only ask to stop: the yielded function says whether one came. A second one kills."""
    asked = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        print("\nstopping after this iteration (once more to stop at once) ...", file=sys.stderr, flush=True)
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, previous[name])

    previous: dict[signal.Signals, Any] = {}
    for name in (signal.SIGINT, signal.SIGTERM):
        previous[name] = signal.signal(name, ask)
    try:
        yield lambda: bool(asked)
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
