"""The training loop for images, or other samples of a flow model: rewards and prompt sets.

One iteration: choose prompts, sample a group of images for each from the behaviour policy, score them, compute
advantages, and pass the algorithm's training points to the loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms.algorithm import TEACHER, Algorithm, differentiates, measured_by, products, refuse_incomplete
from ..algorithms.suited import refuse_times
from ..evaluation.evaluate import Evaluator, NotFinite
from ..evaluation.measurement import to_json
from ..evaluation.outcome import NOUNS
from ..evaluation.provenance import same_scores
from ..learning.credit import constant
from ..learning.mixing import APART, MIXES, RewardBuffer, each_reward
from ..learning.objectives import Apart
from ..learning.points import PointSet
from ..process.filled import filled
from ..process.noise import Noise
from ..process.policy import Condition, Models, Policy
from ..process.rollout import Drawn, Rollout, bound_to
from ..prompts import Prompt, PromptSet, refuse_others
from ..rewards import Reward, RewardError, terms
from ..rewards.scoring import Scoring, agreed
from ..system import distributed
from ..system.streams import Key
from . import differentiated
from .batches import counted
from .course import TrainingError
from .curriculum import Choice, Curriculum, InTurn, Order
from .drawing import block_of, drawn_by
from .folder import RunFolder
from .guards import Watch
from .health import Health
from .loop import Gathered, Loop
from .metrics import Clock, Step, describe
from .palettes import weighting_of, weights_of
from .passes import Blank
from .record import EXTREMES
from .run import Run
from .samples import Samples
from .shown import Shown
from .speed import Speedometer
from .teachers import NONE, Teachers

STOPPED = (
    "the guard shows that the reward is exploited. To go on: --resume with --no-stop-when-hacked; an earlier "
    "checkpoint is in the run folder"
)
Collect = Callable[[Sequence[Prompt], Condition, int, Tensor], Iterator[tuple[Drawn, Tensor]]]
"""(prompts, encoded prompts, iteration, numbers of images [n]) -> these images in order, in parts: samples, images"""


MEASURED_ROWS = 16  # noises that an algorithm measures the policy on, at an evaluation
Graft = Callable[[Rollout, Sequence[Prompt], int], Rollout]  # samples, prompts of groups, iteration -> samples


def _as_it_is(rollout: Rollout, prompts: Sequence[Prompt], index: int) -> Rollout:
    return rollout


class Trainer(Loop[Evaluator]):
    """The training loop for images of a flow model."""

    algorithm: Algorithm
    run: Run
    models: Models

    def __init__(
        self,
        algorithm: Algorithm,
        policy: Policy,
        reward: Reward,
        prompts: PromptSet,
        run: Run,
        collect: Collect | None = None,
        graft: Graft | None = None,
        teachers: Teachers = NONE,
    ):
        """`collect` replaces sampling from the policy, `graft` modifies the samples (see datasets.py).

        Args:
            teachers: that the policy holds beside its own weights (see teachers.py).

        Raises:
            ValueError: batch sizes do not divide evenly (see batches.py), or `algorithm` or `prompts` has another type,
                the teachers do not fit them, or the algorithm needs a gradient that reward or model do not have.
        """
        refuse_incomplete(algorithm)
        refuse_others(prompts)
        differentiated.refuse(algorithm, policy, reward, prompts)
        teachers.refuse(algorithm, prompts)
        refuse_times(algorithm, policy)
        self.policy, self.reward, self.prompts = policy, reward, prompts
        super().__init__(algorithm, policy, run)
        self.rollout = bound_to(policy, algorithm.rollout)
        self.collect, self.graft = collect or self.draw, graft or _as_it_is
        self.teachers = teachers
        scales = {"policy": algorithm.guidance, **algorithm.anchors, **products(algorithm)}
        taught = {TEACHER: teachers.velocity(policy, algorithm.anchors[TEACHER])} if teachers else {}
        slope = differentiated.RewardSlope(policy, reward, prompts)
        product = policy.product("reference", scales.get("reference", 1.0))
        self.models = Models.of(policy, scales, **taught).differentiating(slope, product)
        self.buffer = RewardBuffer(run.reward_buffer, [same_scores(each) for _, _, each in terms(reward)])
        self.weighting = weighting_of(policy, reward, run, not constant(algorithm.credit))
        self.order: Order = InTurn(prompts, run.seed)
        if run.curriculum:
            self.order = Curriculum(prompts, run.seed, rest=run.curriculum)
        self.watch: Watch | None = None  # for guards, from the first evaluation on
        self.speedometer = Speedometer(policy, prompts[0])
        self.shown: Shown | None = None  # of the last iteration
        counts = counted(algorithm, self.rollout, run)
        self.points_per_update, self.indivisible = counts.per_update, counts.indivisible
        together = counts.compares or getattr(reward, "compares", False)
        self.unit = run.group_size if together else self.rollout.leaves  # images that one process draws and trains on

    @property
    def block(self) -> int:  # type: ignore[override]
        """Samples per forward pass without gradient."""
        return block_of(self.rollout, self.run)

    @property
    def noun(self) -> str:
        return self.policy.medium.noun

    def rules(self) -> Health:
        return Health(NOUNS[self.policy.medium.noun])

    @property
    def gradients(self) -> int:
        """Gradients per optimiser step: one per reward if the mix keeps them apart."""
        return int((weights_of(self.reward) != 0).sum()) if self.run.mix in APART else 1

    @property
    def size(self) -> str:
        """Batch sizes, image size, and the options that reduce memory."""
        run, medium = self.run, self.policy.medium
        more = f", or use --gradient-checkpointing or {medium.savings}" if medium.savings else ""
        return (
            f"with {medium.about}, {run.rollout_batch} {medium.noun} sampled at once and {self.microbatch} "
            f"training points per forward and backward pass: lower --rollout-batch and --microbatch{more}"
        )

    def _step(self) -> Step:
        self.speedometer.reset()
        step = super()._step()
        counts = self.speedometer.evaluations()
        speed = self.speedometer.figures(self.run.images, counts, sum(step.seconds.values()))
        return replace(step, metrics={**step.metrics, "network_evaluations": counts["all"]}, speed=speed)

    def measured(self, step: Step, evaluator: Evaluator, folder: RunFolder | None) -> Step:
        """The step with an evaluation of the current weights. A sample grid is saved in the folder."""
        started = time.perf_counter()
        shown = self.shown if self.shown and self.shown.iteration == step.index else None
        extremes = shown.extremes() if shown else None
        if folder and extremes and self.due(step.index):  # first: on resume there are no samples to make it from
            folder.save_sample(step.index, extremes, EXTREMES)
        try:
            measured, samples = evaluator.measure(), evaluator.samples()
        except RewardError as error:  # all processes raise it, but samples may be infinite in some of them only
            self.sound = not distributed.any_of(isinstance(error, NotFinite))
            raise
        groups = shown.groups(self.run.group_size) if shown else []
        if folder:
            if extremes and not self.due(step.index):  # the run was stopped here
                folder.save_sample(step.index, extremes, EXTREMES)
            folder.save_sample(step.index, samples.grid(), record=samples.record(step.index, groups))
            folder.save_scores(step.index, to_json([measured]))
        if self.watch is None:
            self.watch = Watch(folder.path if folder else None)
        hacked = self.watch.look(step.index, measured)
        health = [*step.health, *hacked]
        if self.run.stop_when_hacked and distributed.any_of(bool(hacked)):
            self.ended = True
            health.append(f"stopped after iteration {step.index} of {self.run.iterations}: {STOPPED}")
        seconds = {**step.seconds, "evaluate": time.perf_counter() - started}
        return replace(
            step, evaluation=measured.summary(), measures=self._own_measures(), health=health, seconds=seconds
        )

    def _own_measures(self) -> dict[str, float]:
        """What the algorithm measures of the policy; every process the same."""
        policy, chosen = self.policy, self.prompts.spread(MEASURED_ROWS)

        def start() -> tuple[Tensor, Condition]:
            keys = tuple(("measured", self.run.seed, number) for number in range(len(chosen)))
            condition = policy.encode([self.prompts[i] for i in chosen])
            return Noise(policy.latent_shape, keys, policy.device).start(), condition

        with policy.weights.still("policy"), torch.no_grad():
            return measured_by(self.algorithm, policy.under("policy", self.rollout.guidance), start)

    def gather(self, index: int, clock: Clock) -> Gathered:
        """Sample and score a group of images for each prompt, and make the algorithm's training points.

        Raises:
            RewardError: the reward failed.
            TrainingError: samples are NaN or infinite.
        """
        choice = self.order.choose(index, self.run.groups)
        prompts = [self.prompts[i] for i in choice.indices]
        with self._scoring(choice.indices) as scoring:
            with clock("rollout"):
                rollout, images = self.sample(prompts, index, scoring.add)
                rollout = self.graft(rollout, prompts, index)
                self._refuse_infinite(rollout)
            with clock("reward"):
                rewards = agreed(lambda: scoring.result(images), scoring.slow)
                rollout = self.credit(rollout, rewards, prompts)
        with clock("train"):
            own, names = rollout.own, [name for name, _, _ in terms(self.reward)]
            metrics = describe(rollout, prompts) | each_reward(names, rewards[own], rollout.group[own])
            metrics |= scoring.missing()
            points = self._points(rollout, ("points", self.run.seed, index))
            samples = self._samples_of(choice, images, rewards, rollout.advantage)
            texts = [self.prompts.texts[i] for i in choice.indices]
            self.shown = Shown.of(index + 1, samples, self._mine(), rollout, texts)
        told = rollout.advantage if rollout.apart is None else rollout.apart  # what the losses see
        return Gathered(
            points if points is not None and len(points) else None,
            metrics,
            lambda: self._keep(choice, prompts, rewards[own], rollout.group[own]),
            dict(self.shown.line),
            samples,
            told[own].flatten(),
        )

    def _samples_of(self, choice: Choice, images: Tensor, rewards: Tensor, advantage: Tensor) -> Samples:
        """The images of this process, with their part of the rewards [N, R] and advantages [N] of all processes."""
        mine = self._mine()
        texts = [self.prompts.texts[choice.indices[group]] for group in self._group()[mine].tolist()]
        names = [name for name, _, _ in terms(self.reward)]
        scores = dict(zip(names, rewards[mine].unbind(1), strict=True))
        return Samples(images, texts, scores, advantage[mine], self.policy.medium)

    def _keep(self, choice: Choice, prompts: Sequence[Prompt], rewards: Tensor, group: Tensor) -> dict[str, float]:
        """Store rewards for the reward buffer and the curriculum. Returns the curriculum's metrics."""
        self.buffer.add(rewards, group, prompts)
        self.order.see(choice, rewards, group)
        return self.order.told(choice)

    def _refuse_infinite(self, rollout: Rollout) -> None:
        self.sound = not distributed.any_of(not rollout.x0.isfinite().all())
        if not self.sound:
            raise TrainingError(
                f"the samples of iteration {self.iteration + 1} are NaN or infinite: the weights have diverged and are "
                "not saved. Resume from an earlier checkpoint with a lower learning rate. --resume uses the newest "
                f"checkpoint, so delete that of iteration {self.iteration}, if there is one"
            )

    def sample(
        self, prompts: Sequence[Prompt], index: int, seen: Callable[[Tensor], None] = lambda images: None
    ) -> tuple[Rollout, Tensor]:
        """Sample a group of images per prompt. Returns the rollout of all processes, without rewards and with the
        latents of this one, and the images of this process on the CPU.

        `seen` is called with each batch of images as soon as it is ready.
        """
        condition, mine = self.weighting.told(self.encode(prompts), index), self._mine()
        parts, pictures = list[Drawn](), list[Tensor]()
        with self.policy.weights.still(self.algorithm.behaviour):
            for drawn, images in self.collect(prompts, condition, index, mine):
                parts.append(drawn)
                pictures.append(images)
                seen(images)
        if not parts:  # there are more processes than units of images
            parts = [Drawn(torch.empty(0, *self.policy.latent_shape, device=self.policy.device))]
            pictures = [torch.empty(0, *self.policy.medium.shape)]
        outlines = distributed.each_team(Drawn.cat(parts).outline())
        levels = self.rollout.levels
        rollout = Rollout.of(parts, condition, self._group(), levels, outlines, distributed.team())
        return rollout, torch.cat(pictures)

    def draw(
        self, prompts: Sequence[Prompt], condition: Condition, index: int, numbers: Tensor
    ) -> Iterator[tuple[Drawn, Tensor]]:
        """The images with these numbers [n] of an iteration, sampled from the behaviour policy."""
        group, unit = self._group(), torch.arange(self.rollout.leaves)
        drawn = drawn_by(self.policy, self.rollout, self.run, index, self.algorithm.behaviour)
        parts = list(numbers.split(self.run.rollout_batch)) if len(numbers) else []
        size = len(parts[0]) if parts else len(unit)
        for rows, real in distributed.in_step(parts, unit, self.policy.weights.collective):
            whole, repeated = filled(self.policy, rows, size, len(unit))
            with repeated:
                found, images = drawn(condition[group[whole]], whole)
            if real:
                yield found.first(len(rows)), images[: len(rows)]

    def blank(self) -> Blank:
        x = torch.zeros(1, *self.policy.latent_shape, device=self.policy.device)
        return Blank(x, torch.full((1,), 0.5, device=x.device), self.encode([self.prompts[0]]))

    def still(self, anchor: str) -> AbstractContextManager[None]:
        return nullcontext() if anchor == TEACHER else super().still(anchor)  # each teacher sees to itself

    def filled(self, anchor: str, rows: Tensor, size: int) -> tuple[Tensor, AbstractContextManager[None]]:
        if anchor == TEACHER:  # each teacher has its own rows, of any number
            return super().filled(anchor, rows, size)
        return filled(self.policy, rows, size)

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        """The encoded prompts, one row each, with what else belongs to a row."""
        found = self.teachers.beside(self.policy.encode(prompts), prompts, self.prompts)
        return differentiated.numbered(found, prompts, self.prompts) if differentiates(self.algorithm) else found

    def _scoring(self, chosen: Sequence[int]) -> Scoring:
        """Scoring for the images that this process samples for these prompts."""
        prompts = self.prompts
        mine = [chosen[n] for n in self._group()[self._mine()].tolist()]
        rewards = [(name, reward) for name, _, reward in terms(self.reward)]
        texts, medium = [prompts.texts[i] for i in mine], self.policy.medium
        return Scoring(rewards, texts, prompts.about(mine, medium.facts), self.unit, medium.frames)

    def credit(self, rollout: Rollout, rewards: Tensor, prompts: Sequence[Prompt]) -> Rollout:
        """The rollout with rewards [N, R] and advantages; `prompts` has one prompt per group.

        An exemplar has the advantage 1 and does not affect the advantages of its group. If the mix keeps rewards apart,
        `apart` has their advantages, and `advantage` the mean.
        """
        weights, own = weights_of(self.reward), rollout.own
        values, cohort = self.buffer.beside(rewards[own], rollout.cohort[own], rollout.group[own], prompts)
        each = self.weighting.of(rollout)
        if each.ndim == 2:  # remembered rewards need a row too; their advantages are not used
            each = torch.cat([each[own], torch.ones(len(values) - int(own.sum()), len(weights))])
        mixed = MIXES[self.run.mix](self.algorithm.credit, values, each, cohort)[: int(own.sum())]
        advantage = torch.ones(len(rewards), *mixed.shape[1:], dtype=torch.float64)
        advantage[own] = mixed
        rollout = replace(rollout, reward=(rewards * weights).sum(1).float())
        if advantage.ndim == 1:
            return replace(rollout, advantage=advantage)
        return replace(rollout, advantage=advantage.mean(1), apart=advantage)

    def _points(self, rollout: Rollout, key: Key) -> PointSet | None:
        """The training points, once per reward if the mix keeps rewards apart, without rewards whose advantages are
        all 0; None if all are.
        """
        names = [name for name, weight, _ in terms(self.reward) if weight or rollout.apart is None]
        each = dict(zip(names, rollout.objectives(), strict=False))
        sets = {name: self.algorithm.points(own, key) for name, own in each.items() if own.advantage.any()}
        whole = Apart(sets) if rollout.apart is not None and sets else next(iter(sets.values()), None)
        return whole

    def _group(self) -> Tensor:
        """The group number of each image, [N]."""
        return torch.arange(self.run.groups).repeat_interleave(self.run.group_size)

    def _mine(self) -> Tensor:
        """The numbers of the images of this process: whole roots, or whole groups whose images are compared."""
        return distributed.share(torch.arange(self.run.images), self.unit)

    def state_dict(self) -> dict[str, Any]:
        """The state that the rest of the run depends on."""
        curriculum = self.order.state_dict()
        return (
            super().state_dict()
            | {"rewards": self.buffer.state_dict()}
            | ({"curriculum": curriculum} if curriculum else {})
        )

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: it belongs to another model, or to an algorithm with other copies.
        """
        super().load_state_dict(state)
        self.buffer.load_state_dict(state["rewards"])
        if "curriculum" in state:  # not if the prompts have changed since
            self.order.load_state_dict(state["curriculum"])
