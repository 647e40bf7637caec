"""From settings to a run that is ready to go: the model, its rewards and prompts, the trainer and what measures it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from .. import models, prompts, rewards
from ..algorithms import ALGORITHMS
from ..algorithms.algorithm import Algorithm
from ..evaluation.evaluate import Evaluator, load_rewards
from ..evaluation.leakage import leak
from ..process.policy import Policy
from ..prompts import PromptSet
from ..rewards import Reward
from ..system import distributed
from . import config, fit
from .datasets import Exemplars, Preferences
from .folder import RunFolder
from .metrics import Step
from .run import Run
from .trainer import Collect, Graft, Trainer


@dataclass(frozen=True)
class Parts:
    """What a trainer is made of, apart from the sizes of its batches."""

    algorithm: Algorithm
    policy: Policy
    reward: Reward
    prompts: PromptSet
    collect: Collect | None = None  # takes the place of sampling
    graft: Graft | None = None  # changes what was sampled

    @classmethod
    def of(cls, settings: Any, policy: Policy, reward: Reward, texts: PromptSet) -> Parts:
        """With preference pairs or exemplars, if the settings name any; pairs bring prompts and a reward of their own.

        Raises:
            ValueError: the files do not fit the algorithm, the model or the sizes of the run.
        """
        parts = cls(settings.algorithm, policy, reward, texts)
        if settings.preferences:
            parts = parts._with_pairs(settings)
        return parts._with_exemplars(settings) if settings.exemplars else parts

    def _with_pairs(self, settings: Any) -> Parts:
        if settings.run.group_size != 2:
            raise ValueError(f"preferences come in pairs: give --group-size 2, not {settings.run.group_size}")
        given = Preferences.load(settings.preferences)
        given.refuse(self.algorithm.points, self.algorithm.rollout.bound(self.policy.times).levels)
        collect = given.collector(self.policy, settings.run.seed)
        return replace(self, reward=given.reward, prompts=given.prompts, collect=collect)

    def _with_exemplars(self, settings: Any) -> Parts:
        if not getattr(self.algorithm, "takes_exemplars", False):
            known = [name for name, kind in ALGORITHMS.items() if getattr(kind, "takes_exemplars", False)]
            raise ValueError(f"exemplars are for {', '.join(known)}: the other algorithms have no rule for them")
        given = Exemplars.load(settings.exemplars, settings.exemplar_share, settings.exemplars_per_group)
        given.refuse(self.prompts, settings.run.group_size)
        return replace(self, graft=given.grafter(self.policy, settings.run.seed))

    def trainer(self, run: Run) -> Trainer:
        """Raises ValueError if the batch arithmetic does not come out even."""
        return Trainer(self.algorithm, self.policy, self.reward, self.prompts, run, self.collect, self.graft)


@dataclass(frozen=True)
class Assembly:
    """A run that is ready to go."""

    settings: Any  # config.Settings, with the precision and the batches that were found
    trainer: Trainer
    evaluator: Evaluator
    notes: tuple[str, ...]  # worth knowing before a run begins
    warnings: tuple[str, ...]  # the same, for the run's report too

    @contextmanager
    def folder(self, resume: bool) -> Iterator[RunFolder | None]:
        """A new run folder, or that of a run that goes on, without what came after its checkpoint.

        None if another process writes it.
        """
        if distributed.rank():
            yield None
            return
        path, settings = self.settings.run.output, config.to_dict(self.settings)
        folder = RunFolder.open(path) if resume else RunFolder.create(path, settings)
        with folder.held():
            if resume:
                folder.forget_after(self.trainer.iteration - (self.trainer.iteration == 0))
                folder.write_config(settings)
            yield folder


def assembled(settings: Any, resume: bool = False, say: Callable[[str], object] = print) -> Assembly:
    """Load everything that settings name, and refuse what does not fit together before a run begins.

    Args:
        settings: config.Settings.
        resume: go on from the newest checkpoint of the run folder.
        say: takes a sentence about batches that were chosen.

    Raises:
        ValueError: what was asked for does not fit together.
    """
    how = settings.evaluation
    reward = rewards.load(settings.reward, settings.reward_options)
    texts = prompts.load(settings.prompts).weighted(settings.prompt_weights)
    held_out, measured = prompts.load(how.prompts), _measures(settings)
    policy = models.load(settings.model, settings.lora_rank, settings.precision, settings.run.seed, settings.loading)
    settings = replace(settings, precision=policy.precision)  # the run goes on in the one that it began with
    parts = Parts.of(settings, policy, reward, texts)
    _ready(parts, held_out, measured)
    trainer = parts.trainer(settings.run)
    if limit := fit.limit(settings.run.memory, policy.device):
        settings = replace(settings, run=_fitted(trainer, limit, say))
        trainer = parts.trainer(settings.run)
    if resume and (state := RunFolder.open(settings.run.output).state(*trainer.state_dict())):
        trainer.load_state_dict(state)
    evaluator = Evaluator(policy, how, held_out, rewards=measured)
    guidance = () if settings.preferences else _of_guidance(policy, settings.algorithm.rollout.guidance)
    notes = (*trainer.rollout.remarks(), *guidance)
    return Assembly(settings, trainer, evaluator, notes, _warnings(settings, parts.prompts, held_out))


def _measures(settings: Any) -> dict[str, Reward]:
    """The rewards that images are measured with; options of the same reward in training hold for them too."""
    how = settings.evaluation
    watched = {rewards.weighted(name)[0] for name in how.scores}
    shared = [each for each in settings.reward_options if rewards.owner(each) in watched]
    return load_rewards(how.scores, [*shared, *how.reward_options])


def _ready(parts: Parts, held_out: PromptSet, measured: Mapping[str, Reward]) -> None:
    """Encode all prompts. Raises ValueError if the model or a reward cannot read one of them."""
    policy, texts = parts.policy, parts.prompts
    for each in (texts, held_out):
        try:
            policy.refuse(list(each))
        except ValueError as error:
            raise ValueError(f"prompts {each.name}: {error}") from error
    with distributed.first():  # it fills the cache on disk, which the others read
        policy.prepare([*texts, *held_out])
    rewards.refuse(parts.reward, texts.texts, texts.about(range(len(texts))))
    for own in measured.values():
        rewards.refuse(own, held_out.texts, held_out.about(range(len(held_out))))


def _fitted(trainer: Trainer, limit: float, say: Callable[[str], object]) -> Run:
    """The run with the largest batches that fit in the memory of every process."""
    run, said = fit.fitted(trainer, limit)
    say(said)
    least = distributed.merged({"sampled": run.rollout_batch, "trained": run.microbatch}, min)
    return replace(run, rollout_batch=int(least["sampled"]), microbatch=int(least["trained"]))


def _of_guidance(policy: Policy, guidance: float) -> list[str]:
    """What the guidance scale of training costs, and whether the model was made for another."""
    lines = [f"{remark} (--algorithm.rollout.guidance)"] if (remark := policy.remark(guidance)) else []
    if (many := policy.evaluations(guidance)) > 1:
        lines.append(f"guidance {guidance:g} takes {many} network evaluations per step: with the prompt and without it")
    return lines


def _warnings(settings: Any, texts: PromptSet, held_out: PromptSet) -> tuple[str, ...]:
    how, drawn = settings.evaluation, settings.algorithm.rollout.guidance
    sources = ("" if settings.preferences else settings.prompts, how.prompts)
    found = [leaked] if (leaked := leak(texts, held_out, how.chosen(held_out), sources)) else []
    if not settings.preferences and (unlike := how.unlike(drawn)):
        found.append(f"{unlike} (--evaluation.sampler.guidance {drawn:g} for the same)")
    return tuple(found)


def train(
    algorithm: Algorithm,
    policy: Policy,
    reward: Reward,
    prompts: PromptSet,
    run: Run,
    evaluator: Evaluator | None = None,
) -> Iterator[Step]:
    """Train from Python, yielding every finished iteration; with an evaluator, step 0 measures the base model.

    The `health` of step 0 says if prompts are in both sets, and if the guidance of training and evaluation differ.

    Raises:
        ValueError: what was asked for does not fit together, the model or a reward cannot read a prompt, or the folder
            `run.output` holds something already.
        RewardError, TrainingError: the run cannot go on.
        OSError: the run folder cannot be written.
    """
    trainer = Trainer(algorithm, policy, reward, prompts, run)
    policy.refuse(list(prompts))
    rewards.refuse(reward, prompts.texts, prompts.about(range(len(prompts))))
    if evaluator:
        evaluator.refuse()
    how = evaluator.told if evaluator else None
    described = config.of_python(algorithm, policy, reward, prompts, run, how)
    folder = RunFolder.create(Path(run.output), described) if run.output else None
    remarks: list[str | None] = []
    if evaluator and how:
        shared = leak(prompts, evaluator.prompts, how.chosen(evaluator.prompts))
        remarks = [shared, how.unlike(algorithm.rollout.guidance)]
    with folder.held() if folder else nullcontext():
        yield from trainer.steps(evaluator, folder, [remark for remark in remarks if remark])
