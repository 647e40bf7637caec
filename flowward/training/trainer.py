"""The loop. It names no algorithm, no model and no reward.

One iteration: draw prompts, sample a group of images for each from the behaviour policy, score them, turn scores into
advantages, and take the stated number of optimiser steps on the algorithm's training points. Everything random is a
pure function of (seed, iteration, ...), so there is no generator to save, and several processes can share the work.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..algorithms.algorithm import Algorithm, refuse_incomplete
from ..evaluation.evaluate import Evaluator, NotFinite
from ..evaluation.leakage import leak
from ..evaluation.provenance import same_scores
from ..learning.mixing import MIXES, RewardBuffer, each_reward
from ..learning.optimisers import OPTIMISERS, undone_if_it_fails
from ..learning.points import Batch, PointSet
from ..learning.snapshots import WarmDecay
from ..process.noise import Noise
from ..process.policy import Condition, Models, Policy
from ..process.rollout import Drawn, Rollout
from ..prompts import Prompt, PromptSet, refuse_others
from ..rewards import Reward, RewardError, refuse, terms
from ..rewards.scoring import Scoring, agreed
from ..system import distributed, memory
from ..system.streams import generator
from .batches import counted
from .curriculum import Curriculum, InTurn, Order
from .folder import RunFolder
from .guards import Watch
from .health import Health
from .metrics import Clock, Step, Tally, describe
from .run import Run

Collect = Callable[[Sequence[Prompt], Condition, int, Tensor], Iterator[tuple[Drawn, Tensor]]]
"""(prompts, the same encoded, iteration, numbers of images [n]) -> those in order, by parts: samples, pictures"""

Graft = Callable[[Rollout, Sequence[Prompt], int], Rollout]  # samples, prompts of groups, iteration -> samples


def _as_it_is(rollout: Rollout, prompts: Sequence[Prompt], index: int) -> Rollout:
    return rollout


class TrainingError(RuntimeError):
    """Training cannot go on; the weights are those of the last good step."""


class Trainer:
    """The state of a run, and one method per stage of an iteration."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: Policy,
        reward: Reward,
        prompts: PromptSet,
        run: Run,
        collect: Collect | None = None,
        graft: Graft | None = None,
    ):
        """`collect` takes the place of sampling from the policy, `graft` changes what was sampled (see datasets.py).

        Raises:
            ValueError: the batch arithmetic does not come out even (see batches.py); or this is no algorithm, or no set
                of prompts.
        """
        refuse_incomplete(algorithm)
        refuse_others(prompts)
        self.algorithm, self.policy, self.reward, self.prompts, self.run = algorithm, policy, reward, prompts, run
        self.rollout = algorithm.rollout.bound(policy.times)
        self.collect, self.graft = collect or self.draw, graft or _as_it_is
        for name in algorithm.copies:
            policy.weights.add(name)
        policy.weights.add("ema")
        if "reference" in algorithm.anchors:
            policy.weights.add("reference")
        self.models = Models.of(policy, {"policy": algorithm.guidance, **algorithm.anchors})
        self.parameters = list(policy.weights.tensors("policy").values())
        self.optimiser = OPTIMISERS[run.optimiser](
            self.parameters, run.learning_rate, betas=run.betas, weight_decay=run.weight_decay
        )
        self.health = Health()
        self.buffer = RewardBuffer(run.reward_buffer, [same_scores(each) for _, _, each in terms(reward)])
        self.order: Order = InTurn(prompts, run.seed)
        if run.curriculum:
            self.order = Curriculum(prompts, run.seed, rest=run.curriculum)
        self.iteration = 0  # finished iterations
        self.sound = True  # worth saving: the state of a finished iteration, whose samples are finite
        counts = counted(algorithm, self.rollout, run)
        self.points_per_update, self.indivisible = counts.per_update, counts.indivisible

    @property
    def rows(self) -> int:
        """Samples that the network sees at once without a gradient: fewer than are drawn together from a tree."""
        return self.run.rollout_batch // self.rollout.leaves * self.rollout.breadth

    def _group(self) -> Tensor:
        return torch.arange(self.run.groups).repeat_interleave(self.run.group_size)

    def steps(
        self, evaluator: Evaluator | None = None, folder: RunFolder | None = None, remarks: Sequence[str] = ()
    ) -> Generator[Step]:
        """Go on to the end of the run, measuring, logging and saving on the way.

        The health of the first evaluation is `remarks`, what is to be known of the whole run.

        Leaving the loop early (break, or an exception) saves a checkpoint, unless the weights give no finite samples or
        the last iteration has changed some of them only.
        """
        run, saved, self.watch = self.run, self.iteration, Watch(folder.path if folder else None)
        before = [line for line in folder.lines() if line["iteration"] == self.iteration] if folder else []
        seen = before[0]["images"] if before else self.iteration * run.images  # which another run may have begun
        try:
            if self.iteration == 0 and evaluator:
                yield self._finish(Step(0, {}, [*remarks], {}), 0, evaluator, folder)
            elif evaluator and self._due and distributed.any_of(bool(before) and "evaluation" not in before[0]):
                step = Step.of(before[0]) if before else Step(self.iteration, {}, [], {})
                step = self._measured(step, evaluator, folder)  # this was cut short
                if folder:
                    folder.amend(step.line(seen))
                yield step
            while self.iteration < run.iterations:
                step = self.step()
                seen += run.images
                step = self._finish(step, seen, evaluator if self._due else None, folder)
                if folder and (step.index == run.iterations or step.index % run.checkpoint_every == 0):
                    folder.save(step.index, self.state_dict())
                    saved = step.index
                yield step
        finally:
            if folder and self.iteration > saved and self.sound:
                folder.save(self.iteration, self.state_dict())

    @property
    def _due(self) -> bool:
        """Whether it is time to measure."""
        every = self.run.evaluate_every
        return self.iteration == self.run.iterations or (every > 0 and self.iteration % every == 0)

    def _finish(self, step: Step, seen: int, evaluator: Evaluator | None, folder: RunFolder | None) -> Step:
        """Measure, if it is time to, and log; `seen` images have been trained on."""
        try:
            if evaluator:
                step = self._measured(step, evaluator, folder)
        finally:  # a measurement that fails leaves the iteration as it is
            if folder:
                folder.append(step.line(seen))
        return step

    def _measured(self, step: Step, evaluator: Evaluator, folder: RunFolder | None) -> Step:
        started = time.perf_counter()
        try:
            measured, grid = evaluator.measure(), evaluator.grid()
        except RewardError as error:  # which all processes have; samples need not be infinite in each
            self.sound = not distributed.any_of(isinstance(error, NotFinite))
            raise
        if folder:
            folder.save_sample(step.index, grid)
        health = [*step.health, *self.watch.look(step.index, measured)]
        seconds = {**step.seconds, "evaluate": time.perf_counter() - started}
        return replace(step, evaluation=measured.summary(), health=health, seconds=seconds)

    def step(self) -> Step:
        """One iteration. If it fails, the state is still that of the last one, or `sound` is False (see `update`).

        Raises:
            RewardError: the reward does not do what it should.
            TrainingError: samples or gradients are not finite.
            OutOfMemory: there was none left.
        """
        run, (height, width) = self.run, self.policy.image_size
        what = (
            f"with images of {height} x {width}, {run.rollout_batch} of them sampled at once and {run.microbatch} "
            "points per forward and backward pass: lower --rollout-batch and --microbatch, or use "
            "--gradient-checkpointing or --vae-tiling"
        )
        with memory.explained(what):
            return self._step()

    def _step(self) -> Step:
        clock = Clock()
        index = self.iteration
        choice = self.order.choose(index, self.run.groups)
        prompts = [self.prompts[i] for i in choice.indices]
        with self._scoring(choice.indices) as scoring:
            with clock("rollout"):
                rollout, images = self.sample(prompts, index, scoring.add)
                rollout = self.graft(rollout, prompts, index)
                self._refuse_infinite(rollout)
            with clock("reward"):
                rewards = agreed(lambda: scoring.result(images))
                rollout = self.credit(rollout, rewards, prompts)
        with clock("train"):
            names, own = [name for name, _, _ in terms(self.reward)], rollout.own
            metrics = describe(rollout, prompts) | each_reward(names, rewards[own], rollout.group[own])
            if rollout.advantage.any():
                metrics |= self.learn(self.algorithm.points(rollout, ("points", self.run.seed, index)))
            else:  # Adam would turn the rounding errors of a gradient that is 0 into steps of full length
                metrics |= {"loss": 0.0, "gradient_norm": 0.0}
            self.sound = False  # until all of this is done
            taken = (index + 1) * self.run.updates_per_iteration
            for name, decay in self.algorithm.copies.items():
                self.policy.weights.follow(name, decay(taken))
            self.policy.weights.follow("ema", WarmDecay(self.run.ema_decay)(taken))
            self.buffer.add(rewards[own], rollout.group[own], prompts)
            self.order.see(choice, rewards[own], rollout.group[own])
            metrics |= self.order.told(choice)
            said = self.health.check(metrics)
            self.iteration, self.sound = index + 1, True
        return Step(self.iteration, metrics, said, clock.seconds)

    def _refuse_infinite(self, rollout: Rollout) -> None:
        self.sound = bool(rollout.x0.isfinite().all())
        if not self.sound:
            raise TrainingError(
                f"the samples of iteration {self.iteration + 1} are not finite: the weights have blown up, and are not "
                "saved; go on from an earlier checkpoint with a lower learning rate (--resume takes the newest: remove "
                f"that of iteration {self.iteration}, if there is one)"
            )

    def sample(
        self, prompts: Sequence[Prompt], index: int, seen: Callable[[Tensor], None] = lambda images: None
    ) -> tuple[Rollout, Tensor]:
        """A group of images per prompt: all samples, without rewards yet, and the images of this process on the CPU.

        `seen` is told of images as soon as they are there.
        """
        run, condition, parts, pictures = self.run, self.policy.encode(prompts), [], []
        mine = distributed.share(torch.arange(run.images), run.group_size)
        with self.policy.weights.still(self.algorithm.behaviour):
            for drawn, images in self.collect(prompts, condition, index, mine):
                parts.append(drawn)
                pictures.append(images)
                seen(images)
        every = distributed.everyone(Drawn.cat(parts))
        return Rollout.of(every, condition, self._group(), self.rollout.levels), torch.cat(pictures)

    def draw(
        self, prompts: Sequence[Prompt], condition: Condition, index: int, numbers: Tensor
    ) -> Iterator[tuple[Drawn, Tensor]]:
        """The images with these numbers [n] of an iteration, from the policy that the algorithm samples from."""
        run, policy, rollout = self.run, self.policy, self.rollout
        group, draw = self._group(), rollout.at(run.seed, index)
        velocity = policy.under(self.algorithm.behaviour, rollout.guidance)
        for rows in numbers.split(run.rollout_batch):
            keys = tuple(("noise", run.seed, index, n // run.group_size, n % run.group_size) for n in rows.tolist())
            drawn = draw(velocity, condition[group[rows]], Noise(policy.latent_shape, keys, policy.device))
            yield drawn, torch.cat([policy.decode(part).cpu() for part in drawn.x0.split(self.rows)])

    def _scoring(self, chosen: Sequence[int]) -> Scoring:
        """Of the images that this process will make for these prompts."""
        run, prompts = self.run, self.prompts
        mine = [chosen[n] for n in self._group()[distributed.share(torch.arange(run.images), run.group_size)].tolist()]
        rewards = [(name, reward) for name, _, reward in terms(self.reward)]
        return Scoring(rewards, [prompts.texts[i] for i in mine], prompts.about(mine), run.group_size)

    def credit(self, rollout: Rollout, rewards: Tensor, prompts: Sequence[Prompt]) -> Rollout:
        """With its rewards [N, R] and advantages; `prompts` are those of its groups.

        An exemplar has the advantage 1 and takes no part in its group's.
        """
        weights = torch.tensor([weight for _, weight, _ in terms(self.reward)], dtype=torch.float64)
        own = rollout.own
        values, cohort = self.buffer.beside(rewards[own], rollout.cohort[own], rollout.group[own], prompts)
        mixed = MIXES[self.run.mix](self.algorithm.credit, values, weights, cohort)
        advantage = torch.ones(len(rewards), dtype=torch.float64)
        advantage[own] = mixed[: int(own.sum())]
        return replace(rollout, reward=(rewards * weights).sum(1).float(), advantage=advantage)

    def learn(self, points: PointSet) -> dict[str, float]:
        """The optimiser steps of one iteration, over units of points in random order, each point used once.

        An exception takes back those that were taken, where there are several.
        """
        run = self.run
        order = torch.randperm(len(points) // points.unit, generator=generator("order", run.seed, self.iteration))
        tally = Tally()
        norms: list[float] = []
        # with a single update nothing has been changed before it, and copies of all weights would be wasted
        with undone_if_it_fails(self.parameters if run.updates_per_iteration > 1 else (), self.optimiser):
            for number, units in enumerate(order.chunk(run.updates_per_iteration)):
                numbers = (units[:, None] * points.unit + torch.arange(points.unit)).flatten()
                mine, first = distributed.share(numbers, points.indivisible), number == 0
                same = self._same() if first else ()
                for part in self.batches(points, mine, first and self.algorithm.behaviour == "policy", same):
                    loss, metrics = self.algorithm.loss(self.models, part)
                    (loss.sum() / len(numbers)).backward()
                    tally.add({"loss": loss.detach(), **metrics})
                norms.append(self.update(self.iteration * run.updates_per_iteration + number))
            norm = {"gradient_norm": sum(norms) / len(norms)}
            return tally.means(len(order) * points.unit) | norm | tally.extremes()

    def _same(self) -> tuple[str, ...]:
        """Anchors that have the policy's velocity, because they are copies that have just become what it is."""
        how = self.algorithm
        names = [name for name in how.copies if how.anchors.get(name) == how.guidance]
        return tuple(name for name in names if self.policy.weights.same(name))

    def batches(
        self, points: PointSet, numbers: Tensor, fresh: bool = False, same: Sequence[str] = ()
    ) -> Iterator[Batch]:
        """Microbatches of the points with these numbers, velocities that carry no gradient evaluated in larger ones.

        Those of the `same` anchors are the policy's, which is then evaluated once for all.
        """
        others = [name for name in self.algorithm.anchors if name not in same]
        block = max(1, self.rows // self.run.microbatch) * self.run.microbatch
        for part in numbers.split(block) if len(numbers) else ():
            batch: Any = replace(points.take(part), fresh=fresh)
            if self.algorithm.skips_silent:
                batch = batch[(batch.advantage != 0).view(len(batch), -1).any(1)]
            if not len(batch):
                continue
            with torch.no_grad():
                batch = batch.knowing({name: self._anchor(name, batch) for name in others})
            for part in batch.split(self.run.microbatch):
                if same:
                    v = self.models.at("policy", part)
                    part = part.knowing({"policy": v, **dict.fromkeys(same, v.detach())})
                yield part

    def _anchor(self, name: str, batch: Batch) -> Tensor:
        with self.policy.weights.still(name):
            return self.models.at(name, batch)

    def update(self, number: int) -> float:
        """Add up gradients, clip them, and take optimiser step `number` of the run. Returns their norm before that.

        Raises:
            TrainingError: the gradient is not finite; no weight has been changed by it.
        """
        for tensor in self.parameters:
            if tensor.grad is None:  # there was nothing to do for this process
                tensor.grad = torch.zeros_like(tensor)
        distributed.add_up([tensor.grad for tensor in self.parameters if tensor.grad is not None])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.run.gradient_clip).item()
        if not norm < float("inf"):
            self.optimiser.zero_grad()
            raise TrainingError(
                f"the gradient of iteration {self.iteration + 1} is not finite, so training stopped before the weights "
                "were changed by it; lower the learning rate, or try --precision float32"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = self.run.rate(number)
        # a stop in this step, or another process that ends: the only update is not taken back (see `learn`)
        self.sound = self.run.updates_per_iteration > 1
        self.optimiser.step()
        self.optimiser.zero_grad()
        return norm

    def state_dict(self) -> dict[str, Any]:
        """All that the rest of the run depends on."""
        names = ["policy", *self.algorithm.copies, "ema"]
        return {
            "identity": self.policy.identity,
            "iteration": self.iteration,
            "weights": {name: self.policy.weights.tensors(name) for name in names},
            "optimiser": self.optimiser.state_dict(),
            "health": self.health.state_dict(),
            "rewards": self.buffer.state_dict(),
            **({"curriculum": state} if (state := self.order.state_dict()) else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`.

        Raises:
            ValueError: it belongs to another model, or to an algorithm with other copies.
        """
        if other := self.policy.unlike(state.get("identity") or {}):
            raise ValueError(f"this checkpoint belongs to another model: its {', '.join(other)} differs")
        for name in ["policy", *self.algorithm.copies, "ema"]:
            if name not in state["weights"]:
                raise ValueError(f"this checkpoint has no '{name}' weights: it was written by another algorithm")
            self.policy.weights.load(name, state["weights"][name])
        self.optimiser.load_state_dict(state["optimiser"])
        for group in self.optimiser.param_groups:  # as this run has them, if it was resumed with others
            group["weight_decay"], group["betas"] = self.run.weight_decay, self.run.betas
        self.health.load_state_dict(state["health"])
        self.buffer.load_state_dict(state["rewards"])
        self.order.load_state_dict(state.get("curriculum", {}))
        self.iteration = state["iteration"]


def train(
    algorithm: Algorithm,
    policy: Policy,
    reward: Reward,
    prompts: PromptSet,
    run: Run,
    evaluator: Evaluator | None = None,
) -> Iterator[Step]:
    """Train, yielding every finished iteration; with an evaluator, step 0 is the base model's evaluation.

    Its `health` says where prompts are in both sets, and where guidance differs: an evaluation has its own.

    Raises:
        ValueError: what was asked for does not fit together, the model or a reward cannot read a prompt, or the folder
            `run.output` holds something already.
        RewardError, TrainingError: the run cannot go on.
        OSError: the run folder cannot be written.
    """
    trainer = Trainer(algorithm, policy, reward, prompts, run)
    policy.refuse(list(prompts))
    refuse(reward, prompts.texts, prompts.about(range(len(prompts))))
    if evaluator:
        evaluator.refuse()
    from . import config  # here, because it knows what a Run is

    how = evaluator.told if evaluator else None
    described = config.of_python(algorithm, policy, reward, prompts, run, how)
    folder = RunFolder.create(run.output, described) if run.output else None
    remarks: list[str | None] = []
    if evaluator and how:
        shared = leak(prompts, evaluator.prompts, how.chosen(evaluator.prompts))
        remarks = [shared, how.unlike(algorithm.rollout.guidance)]
    with folder.held() if folder else nullcontext():
        yield from trainer.steps(evaluator, folder, [remark for remark in remarks if remark])
