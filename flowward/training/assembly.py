"""From settings to a run that is ready to start: model, rewards, prompts, trainer and evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from .. import models, prompts, rewards
from ..algorithms import ALGORITHMS
from ..algorithms.algorithm import Algorithm, remarks
from ..algorithms.suited import distilled_remarks, refuse_distilled
from ..evaluation.evaluate import Evaluator, load_rewards
from ..evaluation.leakage import leak
from ..process.policy import Policy
from ..prompts import PromptSet
from ..rewards import Reward
from ..system import distributed, shared_folders
from . import batches, blocks, config, differentiated, fit, inputs, palettes, trackers
from . import teachers as teaching
from .cautions import remarks_on_guidance, remarks_on_prompts
from .datasets import Exemplars, Preferences
from .folder import RunFolder
from .inputs import Change, Inputs
from .metrics import Step
from .rollouts.ray import Actors, actors_of
from .rollouts.remote import RemoteTrainer
from .run import Run
from .teachers import NONE, Teachers
from .trainer import Collect, Graft, Trainer


@dataclass(frozen=True)
class Parts:
    """The parts of a trainer, except the batch sizes."""

    algorithm: Algorithm
    policy: Policy
    reward: Reward
    prompts: PromptSet
    collect: Collect | None = None  # replaces sampling
    graft: Graft | None = None  # modifies the samples
    images: Inputs = field(default_factory=dict)  # identities of given images
    actors: Callable[[Run], Actors] | None = None  # draw the images, with weights of `stale` iterations before
    stale: int = 0
    teachers: Teachers = NONE  # that the policy holds

    @classmethod
    def of(cls, settings: Any, policy: Policy, reward: Reward, texts: PromptSet) -> Parts:
        """The parts, with preference pairs or exemplars if given; pairs have their own prompts and reward.

        Raises:
            ValueError: the files do not fit the algorithm, the model or the batch sizes; or images cannot be drawn
                elsewhere (see `actors_of`).
        """
        palettes.refuse_elsewhere(settings)
        actors = actors_of(settings, policy, reward)
        named, stale = teaching.parsed(settings.teachers, settings.teacher_guidance), settings.drawing.stale
        taught = teaching.held(policy, named, settings.algorithm, texts)
        parts = cls(settings.algorithm, policy, reward, texts, actors=actors, stale=stale, teachers=taught)
        if settings.preferences:
            parts = parts._with_pairs(settings)
        return parts._with_exemplars(settings) if settings.exemplars else parts

    def _with_pairs(self, settings: Any) -> Parts:
        if settings.run.group_size != 2:
            raise ValueError(f"preferences are pairs: use --group-size 2, not {settings.run.group_size}")
        given = Preferences.load(settings.preferences)
        given.refuse(self.algorithm.points, self.algorithm.rollout.bound(self.policy.times).levels)
        collect = given.collector(self.policy, settings.run.seed)
        images = inputs.of_images("preferences", settings.preferences, given.identity)
        return replace(self, reward=given.reward, prompts=given.prompts, collect=collect, images=images)

    def _with_exemplars(self, settings: Any) -> Parts:
        if not getattr(self.algorithm, "takes_exemplars", False):
            known = [name for name, kind in ALGORITHMS.items() if getattr(kind, "takes_exemplars", False)]
            raise ValueError(f"exemplars work only with --algorithm {' or '.join(known)}: choose it, or leave them out")
        given = Exemplars.load(settings.exemplars, settings.exemplar_share, settings.exemplars_per_group)
        given.refuse(self.prompts, settings.run.group_size)
        images = self.images | inputs.of_images("exemplars", settings.exemplars, given.identity)
        return replace(self, graft=given.grafter(self.policy, settings.run.seed), images=images)

    def trainer(self, run: Run) -> Trainer:
        """Raises ValueError if the batch sizes do not divide evenly."""
        given = self.algorithm, self.policy, self.reward, self.prompts, run
        if self.actors is None:
            return Trainer(*given, self.collect, self.graft, self.teachers)
        actors = self.actors(run)
        return RemoteTrainer(*given, actors.studio, self.stale, self.graft, actors.rewards, self.teachers)


@dataclass(frozen=True)
class Assembly:
    """A run over images that is ready to start."""

    settings: Any  # config.Settings, with the chosen precision and batch sizes
    trainer: Trainer
    evaluator: Evaluator
    notes: tuple[str, ...]  # printed before the run starts
    warnings: tuple[str, ...]  # printed too, and added to the report
    inputs: Inputs  # what the run depends on outside its folder
    changes: tuple[Change, ...] = ()  # since it was started

    @property
    def described(self) -> dict[str, Any]:
        """The settings for config.yaml."""
        return {**config.kind_of(self.trainer.policy), **config.to_dict(self.settings)}

    @property
    def introduction(self) -> str:
        """What is trained, and what comes first."""
        trainer, done = self.trainer, self.trainer.iteration
        begins = f"going on after iteration {done}" if done else f"measuring on {self.evaluator.prompts.name} first"
        return f"model {trainer.policy.name}, {len(trainer.prompts)} prompts; {begins}"


class Ready(Protocol):
    """A run of any kind that is ready to start; see Assembly."""

    settings: Any
    trainer: Any  # a Loop
    evaluator: Any
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    inputs: Inputs
    changes: tuple[Change, ...]

    @property
    def described(self) -> dict[str, Any]: ...
    @property
    def introduction(self) -> str: ...


@contextmanager
def started(
    settings: Any,
    resume: bool = False,
    changed_inputs: bool = False,
    assemble: Callable[[Any, bool, bool], Any] | None = None,
) -> Iterator[tuple[Any, RunFolder | None]]:
    """A run that is ready to start (Ready), and its folder, which no other process can write to meanwhile.

    The folder of a resumed run is locked before its state is read, and then loses everything after its checkpoint. A
    new one is made when everything else is there. In processes that do not write it, it is None.

    Args:
        assemble: (settings, resume, changed_inputs) -> Ready (None: `assembled`).

    Raises:
        ValueError: see `assembled`; or the folder is not empty, or a run is still writing to it, or not all machines
            see it.
    """
    path, assemble = settings.run.output, assemble or assembled
    with ExitStack() as stack:
        if distributed.rank():
            _refuse_apart(path, resume)
            with distributed.patiently():
                made = assemble(settings, resume, changed_inputs)
                made = made if resume else blocks.decided(made)
            yield made, None
        elif resume:
            folder = stack.enter_context(RunFolder.open(path).held())
            _refuse_apart(path, resume)
            with distributed.patiently():
                made = assemble(settings, resume, changed_inputs)
            told = folder.resume(made.trainer.iteration, made.described, made.inputs, made.changes)
            yield replace(made, warnings=(*made.warnings, *([told] if told else []))), folder
        else:
            RunFolder.refuse(path)
            _refuse_apart(path, resume)
            with distributed.patiently():
                made = blocks.decided(assemble(settings, False, False))
            folder = RunFolder.create(path, made.described, made.inputs)
            yield made, stack.enter_context(folder.held())


def _refuse_apart(path: Path, resume: bool) -> None:
    """Raises ValueError if another machine does not see the folder, or the same newest checkpoint."""

    def contents() -> tuple[bool, str]:
        saved = RunFolder.open(path).checkpoints() if resume else []
        return resume, saved[-1].name if saved else ""

    shared_folders.refuse_apart(path, contents)


def assembled(
    settings: Any, resume: bool = False, changed_inputs: bool = False, say: Callable[[str], object] = print
) -> Assembly:
    """Load everything that the settings name, and check that it fits together.

    Args:
        settings: config.Settings.
        resume: continue from the newest checkpoint of the run folder.
        changed_inputs: prompts, reward code or images may have changed since the run was started (see inputs.py).
        say: prints a sentence about the chosen batch sizes.

    Raises:
        ValueError: the settings do not fit together, or the run folder or its newest checkpoint is damaged.
    """
    how = settings.evaluation
    reward = rewards.load(settings.reward, settings.reward_options)
    texts = prompts.load(settings.prompts, settings.prompt_column).weighted(settings.prompt_weights)
    if not settings.preferences:  # they bring prompts of their own
        teaching.parsed(settings.teachers, settings.teacher_guidance).refuse(settings.algorithm, texts)
    held_out, measured = prompts.load(how.prompts, how.prompt_column), _measures(settings)
    found = inputs.of(settings, reward, texts, held_out, measured)
    saved = RunFolder.open(settings.run.output).checkpoints() if resume else []
    policy = _policy(settings, bool(saved))
    settings = replace(settings, precision=policy.precision)  # a resumed run keeps its precision
    if not resume:
        refuse_distilled(settings.algorithm, policy, settings.run.allow_distilled)
    if settings.init_lora and not saved:
        settings = replace(settings, **config.recorded(policy))
    parts = Parts.of(settings, policy, reward, texts)
    found |= parts.images | parts.teachers.inputs
    changes = inputs.compared(settings.run.output, found, changed_inputs) if resume else []
    read = _ready(parts, held_out, measured)
    trainer = parts.trainer(settings.run)
    if limit := fit.limit(settings.run.memory, policy.device):
        settings = replace(settings, run=_fitted(trainer, limit, say))
        trainer = parts.trainer(settings.run)
    if resume:
        _restore(trainer, RunFolder.open(settings.run.output), changes)
    evaluator = Evaluator(policy, how, held_out, rewards=measured)
    guidance = () if settings.preferences else remarks_on_guidance(policy, settings.algorithm.rollout.guidance)
    notes = (*policy.notes, *trainer.rollout.remarks(), *guidance, *settings.drawing.notes())
    changed, teams = inputs.sentence(changes), distributed.teams()
    idle = [*batches.idle(settings.run, trainer.unit, teams), *settings.drawing.idle(settings.run, teams)]
    unlimited = remarks(settings.algorithm, settings.run.updates_per_iteration)
    unlimited += distilled_remarks(settings.algorithm, policy, trainer.rollout)
    warnings = (
        *read,
        *remarks_on_prompts(settings, parts.prompts, held_out),
        *unlimited,
        *idle,
        *([changed] if changed else []),
    )
    return Assembly(settings, trainer, evaluator, notes, warnings, found, tuple(changes))


def _restore(trainer: Trainer, folder: RunFolder, changes: Sequence[Change]) -> None:
    """Continue from the newest checkpoint, if there is one.

    Raises:
        ValueError: it belongs to another model or algorithm, or is damaged.
    """
    needed = (name for name in trainer.state_dict() if name not in ("curriculum", "versions", "adapted"))
    state = folder.state(*needed, shards=trainer.shards())
    if state is None:
        return
    changed = {change.key for change in changes}
    if "prompts" in changed:  # its numbers are those of other prompts
        state.pop("curriculum", None)
    with folder.explained():
        trainer.load_state_dict(state)
    if any(key.startswith("reward ") for key in changed):  # the remembered ones cannot be compared
        trainer.buffer.clear()


def _policy(settings: Any, saved: bool) -> Policy:
    """The model. If there is a saved checkpoint, the LoRA that the run started from is not read again.

    Raises:
        ValueError: the model or the LoRA cannot be loaded, or the LoRA is not the recorded one.
    """
    adapters = settings.stored_adapters if saved else settings.adapters
    policy = models.load(
        settings.model, None, settings.precision, settings.run.seed, settings.loading, adapters, settings.layout
    )
    bf16 = policy.precision == "bf16"
    if distributed.any_of(bf16) and distributed.any_of(not bf16):
        raise ValueError("the processes of this run prefer different precisions: name one with --precision")
    found = config.recorded(policy).get("init_lora_sha256")
    if settings.init_lora_sha256 and found not in (None, settings.init_lora_sha256):
        raise ValueError(
            f"{settings.init_lora} is not the LoRA that was recorded: its SHA-256 is {found}, not "
            f"{settings.init_lora_sha256}; restore the file, or leave out --init-lora-sha256"
        )
    return policy


def _measures(settings: Any) -> dict[str, Reward]:
    """The rewards of the evaluation. They share the options of the same rewards in training."""
    how = settings.evaluation
    watched = {rewards.weighted(name)[0] for name in how.scores}
    shared = [each for each in settings.reward_options if rewards.owner(each) in watched]
    return load_rewards(how.scores, [*shared, *how.reward_options])


def _ready(parts: Parts, held_out: PromptSet, measured: Mapping[str, Reward]) -> list[str]:
    """Encode all prompts; returns warnings about those that the model reads only in part.

    Raises:
        ValueError: the model or a reward does not accept one of them.
    """
    policy, texts = parts.policy, parts.prompts
    for each in (texts, held_out):
        try:
            policy.refuse(list(each))
        except ValueError as error:
            raise ValueError(f"prompts {each.name}: {error}") from error
    said = policy.remarks_on([*texts, *held_out])
    with distributed.first_here():  # the first process of a machine fills the disk cache for the others
        policy.prepare([*texts, *held_out])
    for own in (parts.reward, *measured.values()):
        rewards.refuse_kind(own, policy.medium.kind)
    rewards.refuse(parts.reward, texts.texts, texts.about(range(len(texts)), policy.medium.facts))
    differentiated.tried(parts.algorithm, policy, parts.reward, texts)
    for own in measured.values():
        rewards.refuse(own, held_out.texts, held_out.about(range(len(held_out)), policy.medium.facts))
    return said


def _fitted(trainer: Trainer, limit: float, say: Callable[[str], object]) -> Run:
    """The run with the largest batches that fit into memory in every process."""
    run, said = fit.fitted(trainer, limit)
    say(said)
    least = distributed.merged({"sampled": run.rollout_batch, "trained": run.microbatch}, min)
    return replace(run, rollout_batch=int(least["sampled"]), microbatch=int(least["trained"]))


def train(
    algorithm: Algorithm,
    policy: Policy,
    reward: Reward,
    prompts: PromptSet,
    run: Run,
    evaluator: Evaluator | None = None,
    teachers: Mapping[str, str | Path] | None = None,
) -> Iterator[Step]:
    """Train from Python and yield every finished iteration. With an evaluator, step 0 evaluates the base model.

    The `health` of step 0 warns if training and evaluation share prompts or differ in guidance. `teachers` are runs or
    LoRA files by the category of prompts that each teaches, for algorithms that have teachers.

    Raises:
        ValueError: the arguments do not fit together, the model or a reward does not accept a prompt, or the folder
            `run.output` is not empty.
        RewardError, TrainingError: the run cannot continue.
        OSError: the run folder cannot be written.
    """
    taught = teaching.of(teachers or {})
    trainer, described, told = of_python(algorithm, policy, reward, prompts, run, evaluator, teachers=taught)
    folder = RunFolder.create(Path(run.output), described) if run.output else None
    with folder.held() if folder else nullcontext():
        yield from trainer.steps(evaluator, folder, told)


def of_python(
    algorithm: Algorithm,
    policy: Policy,
    reward: Reward,
    prompts: PromptSet,
    run: Run,
    evaluator: Evaluator | None = None,
    say: Callable[[str], object] | None = None,
    teachers: Teachers = NONE,
) -> tuple[Trainer, dict[str, Any], list[str]]:
    """The trainer of a run from Python, its settings for config.yaml, and warnings about the whole run.

    Args:
        say: choose the batch sizes for `run.memory`, and print them with this function (None: leave them).
        teachers: they are read here.

    Raises:
        ValueError: the arguments do not fit together, or the model or a reward does not accept a prompt.
    """
    trackers.refuse_missing(run.track)
    if run.track and not run.output:
        raise ValueError("trackers continue a run by what its folder says: set `output` beside `track`")
    teachers = teaching.held(policy, teachers, algorithm, prompts)
    trainer = Trainer(algorithm, policy, reward, prompts, run, teachers=teachers)
    refuse_distilled(algorithm, policy, run.allow_distilled)
    policy.refuse(list(prompts))
    rewards.refuse_kind(reward, policy.medium.kind)
    rewards.refuse(reward, prompts.texts, prompts.about(range(len(prompts)), policy.medium.facts))
    differentiated.tried(algorithm, policy, reward, prompts)
    if evaluator:
        evaluator.refuse()
    if say and (limit := fit.limit(run.memory, policy.device)):
        run = _fitted(trainer, limit, say)
        trainer = Trainer(algorithm, policy, reward, prompts, run, teachers=teachers)
    how = evaluator.told if evaluator else None
    described = config.of_python(algorithm, policy, reward, prompts, run, how) | teachers.described
    told: list[str | None] = [*policy.remarks_on([*prompts, *(evaluator.prompts if evaluator else ())])]
    told += remarks(algorithm, run.updates_per_iteration)
    told += distilled_remarks(algorithm, policy, trainer.rollout)
    if evaluator and how:
        shared = leak(prompts, evaluator.prompts, how.chosen(evaluator.prompts))
        told += [shared, how.unlike(algorithm.rollout.guidance)]
    return trainer, described, [each for each in told if each]
