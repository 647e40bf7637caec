"""The training loop, independent of algorithm, model, reward and kind of sample.

One iteration: gather training points (a subclass samples and scores), take the optimiser steps, update the copies of
the policy, check the health rules. All randomness is a pure function of (seed, iteration, ...). So there is no
generator to save, and several processes can share the work.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol

import torch
from torch import Tensor

from ..algorithms.algorithm import PRIVATE, Adaptive, Objective, adaptive_of, products
from ..learning.objectives import Gradients, objectives
from ..learning.optimisers import MOMENTS, OPTIMISERS, load_moments, undone_if_it_fails
from ..learning.points import PointSet, unit_order
from ..learning.snapshots import WarmDecay
from ..process.policy import Weights
from ..system import distributed, freed_memory, memory, threads
from . import passes
from .course import Course, Measures, TrainingError
from .folder import RunFolder
from .health import Health, held_up
from .metrics import Clock, Step, Tally, averaged, pace
from .run import Training
from .samples import Samples
from .trackers import opened


class Model(Protocol):
    """The loop's view of the trained model."""

    weights: Weights
    identity: dict[str, Any]  # a checkpoint must have the same one

    def unlike(self, identity: Mapping[str, Any]) -> list[str]: ...  # the keys in which a checkpoint's identity differs


class Answers(Protocol):
    """The policy and its copies, as a loss evaluates them; for example process.policy.Models."""

    def at(self, name: str, points: Any) -> Tensor: ...


@dataclass(frozen=True)
class Gathered:
    """The result of the rollout of an iteration."""

    points: PointSet | None  # None: all advantages are 0, there is nothing to learn
    metrics: dict[str, float]  # metrics of the samples
    keep: Callable[[], dict[str, float]]  # called once the iteration has succeeded; stores the samples, more metrics
    shown: dict[str, Any] = field(default_factory=dict)  # see metrics.SHOWN
    samples: Samples = field(default_factory=Samples.none)  # for who follows the run
    advantage: Tensor = field(default_factory=lambda: torch.zeros(0))  # [N] of all processes, without given images


class Loop(ABC, Generic[Measures]):
    """The state of a run, with one method per stage of an iteration."""

    models: Any  # Answers; typed by the subclass
    block: int  # rows per forward pass without gradient
    stale = 0  # iterations from the weights that drew the samples to those that are trained

    def __init__(self, algorithm: Objective, model: Model, run: Training):
        threads.refuse_fewer()
        freed_memory.keep()
        self.algorithm, self.model, self.run = algorithm, model, run
        asked = {*algorithm.anchors, *products(algorithm)}
        for name in [*algorithm.copies, "ema", *(["reference"] if "reference" in asked else [])]:
            model.weights.add(name)
        self.parameters = list(model.weights.tensors("policy").values())
        self.optimiser = OPTIMISERS[run.optimiser](
            self.parameters, run.learning_rate, betas=run.betas, weight_decay=run.weight_decay
        )
        self.health = self.rules()
        self.iteration = 0  # finished iterations
        self.sound = True  # worth saving: the iteration is complete and its samples are finite
        self.microbatch = run.microbatch  # smaller after memory ran out
        self.skipped = 0  # optimiser steps in a row whose gradient was not finite
        self.rollbacks = 0  # times that the run went back to a checkpoint
        self.stopping = False  # set from outside: measure the last iteration, and end
        self.ended = False  # set by an evaluation: the run is over before its last iteration
        self._samples = Samples.none()  # of the last iteration
        self.told: list[str] = []  # health warnings for the next finished iteration
        self.adapted = self.adaptive.start()  # the state of the settings that the run chooses for itself

    def rules(self) -> Health:
        """The health rules of this kind of sample."""
        return Health()

    @property
    def adaptive(self) -> Adaptive:
        """What chooses settings of the algorithm during the run."""
        return adaptive_of(self.algorithm)

    @abstractmethod
    def gather(self, index: int, clock: Clock) -> Gathered:
        """Sample, score, and make training points."""

    @abstractmethod
    def measured(self, step: Step, evaluator: Measures, folder: RunFolder | None) -> Step:
        """The step with an evaluation of the current weights."""

    @property
    def noun(self) -> str:
        """What samples are called, which is the key of their number in metrics.jsonl."""
        return self.run.noun

    @property
    @abstractmethod
    def size(self) -> str:
        """Batch sizes and the options that reduce memory, for the message if memory runs out."""

    def steps(
        self, evaluator: Measures | None = None, folder: RunFolder | None = None, remarks: Sequence[str] = ()
    ) -> Generator[Step]:
        """Train to the end of the run, with evaluations, logging and checkpoints.

        `remarks`, warnings about the whole run, become the health warnings of the first evaluation.

        Leaving the loop early (break, or an exception) saves a checkpoint, unless samples are not finite or the last
        iteration is incomplete. With `stopping`, the loop saves and evaluates the last iteration, yields it again, and
        ends.
        """
        with opened(self.run.track, folder, self.iteration) as trackers:
            yield from Course(self, evaluator, folder, trackers).steps(remarks)

    def refuse_apart(self) -> None:
        """All processes compare their trained weights, of which they may hold parts, and end where these differ.

        Raises:
            TrainingError: they do; nothing is saved.
        """
        if others := distributed.apart(self.parameters):
            self.sound = False
            who = f"process {others[0]}" if len(others) == 1 else f"processes {', '.join(map(str, others))}"
            when = f"after iteration {self.iteration}" if self.iteration else "before the first iteration"
            raise TrainingError(
                f"{when} the weights of {who} differ from those of process 0, although all must be equal; they are not "
                "saved. A device or a library has computed something else, or a file is not the same everywhere: "
                "resume from the last checkpoint, and look for the cause if it comes again"
            )

    def due(self, iteration: int) -> bool:
        """Whether an evaluation follows this iteration."""
        every = self.run.evaluate_every
        return iteration == self.run.iterations or (every > 0 and iteration % every == 0)

    def step(self) -> Step:
        """One iteration. If it fails, the state is that of the previous one, or `sound` is False (see `update`).

        Raises:
            RewardError: the reward failed.
            TrainingError: samples or gradients are NaN or infinite.
            OutOfMemory: memory ran out.
        """
        with memory.explained(lambda: self.size):
            return self._step()

    def _step(self) -> Step:
        clock, index = Clock(), self.iteration
        started, waited = time.perf_counter(), distributed.waited()
        self._samples.release()
        gathered = self.gather(index, clock)
        with clock("train"), threads.watched() as cores, self._unadapted_if_it_fails():
            if gathered.points is not None:
                self.adapted = self.adaptive.seen(self.adapted, gathered.advantage)
                metrics = gathered.metrics | self.learn(gathered.points)
            else:  # for a gradient of 0, Adam would turn rounding errors into full-length steps
                metrics = gathered.metrics | {"loss": 0.0, "gradient_norm": 0.0, "clipped_steps": 0.0}
            self.sound = False  # until all of this is done
            taken = (index + 1) * self.run.updates_per_iteration
            for name, decay in self.algorithm.copies.items():
                self.model.weights.follow(name, decay(taken))
            self.model.weights.follow("ema", WarmDecay(self.run.ema_decay)(taken))
            metrics |= {"learning_rate": self._rate(taken - 1), **gathered.keep()}
        share = cores.share if self._shares_cores else None
        said = [*self.told, *self.health.check(metrics), *held_up(share)]
        self.told, self._samples = [], gathered.samples
        self.iteration, self.sound = index + 1, True
        busy = time.perf_counter() - started - (distributed.waited() - waited)
        return Step(
            self.iteration,
            metrics,
            said,
            clock.seconds,
            cpu_share=share,
            pace=pace(busy),
            shown=gathered.shown,
            samples=gathered.samples,
        )

    @contextmanager
    def _unadapted_if_it_fails(self) -> Iterator[None]:
        """Inside, an exception leaves the settings that the run chooses as they were."""
        before, told = self.adapted, self.told
        try:
            yield
        except BaseException:
            self.adapted, self.told = before, told
            raise

    @property
    def _shares_cores(self) -> bool:
        """Whether other programs can hold training up: it is done on the CPU, by threads that wait for each other."""
        return self.parameters[0].device.type == "cpu" and torch.get_num_threads() > 1

    def learn(self, points: PointSet) -> dict[str, float]:
        """The optimiser steps of one iteration, over units of points in random order; each point is used once.

        With several steps, each has as many units of every prompt (see `unit_order`). Points that are `in_order` keep
        their order. A process trains on the points whose samples it has. With fewer units than optimiser steps, fewer
        steps are taken.
        If there are several steps, an exception undoes those taken so far.
        """
        run, units = self.run, points.units()
        order = unit_order(points, run.updates_per_iteration, ("order", run.seed, self.iteration))
        tally, sets, together = Tally(), objectives(points), list[dict[str, float]]()
        norms: list[float | None] = []  # None: the step was skipped
        # a single update has nothing to undo, so it needs no copy of the weights
        with undone_if_it_fails(self.parameters if run.updates_per_iteration > 1 else (), self.optimiser):
            for number, chosen in enumerate(order):
                numbers = torch.cat([units[unit] for unit in chosen.tolist()])
                mine, first = points.here(numbers), number == 0
                same = self._same() if first else ()
                fresh = first and not self.stale and self.algorithm.behaviour == "policy"
                tally.begin_step()
                gradients = Gradients(self.parameters, sets)
                for one in sets.values():
                    tally = self._gradient(tally, one, mine, points.total(numbers), fresh, same)
                    gradients.keep()
                together.append(gradients.combine())
                norms.append(self.update(self.iteration * run.updates_per_iteration + number))
            taken = [norm for norm in norms if norm is not None]
            clipped = sum(norm > run.gradient_clip for norm in taken)
            found = {
                name: total / max(1, len(taken))
                for name, total in (("gradient_norm", sum(taken)), ("clipped_steps", clipped))
            }
            if run.skip_nonfinite:
                found["skipped_steps"] = float(len(norms) - len(taken))
            means = tally.means(points.total(torch.cat([*units])) * len(sets))
            self.adapted, adapted, remarks = self.adaptive.learned(self.adapted, tally.of_last_step)
            self.told = [*self.told, *remarks]
            told = {name: value for name, value in means.items() if not name.startswith(PRIVATE)}
            return told | found | averaged(together) | tally.extremes() | adapted

    def _gradient(
        self, before: Tally, points: PointSet, mine: Tensor, total: float, fresh: bool, same: Sequence[str]
    ) -> Tally:
        """Add up the gradients of an optimiser step, a sum over points divided by `total`. Returns the metrics so far.

        If memory runs out, it starts again with half the microbatch, as long as there is a half. Not where each pass
        needs all processes: the others are in the middle of one.
        """
        smallest = 2 * points.indivisible
        while True:
            tally = deepcopy(before)
            try:
                for evaluated in passes.losses(self, points, mine, fresh, same):
                    loss, metrics = evaluated()
                    (loss.sum() / total).backward()
                    tally.add({"loss": loss.detach(), **metrics})
                return tally
            except (RuntimeError, MemoryError) as error:
                if not memory.ran_out(error) or self.microbatch < smallest or self.model.weights.collective:
                    raise
            self._halve(points.indivisible)

    def _halve(self, indivisible: int) -> None:
        """Continue with half the microbatch; outside the `except` above, whose error holds on to tensors."""
        full, self.microbatch = self.microbatch, self.microbatch // 2 // indivisible * indivisible
        self.optimiser.zero_grad()
        memory.release()
        self.told.append(
            f"out of memory with {full} training points per pass; going on with {self.microbatch}: the same result, in "
            f"more time (--microbatch {self.microbatch})"
        )

    def _same(self) -> tuple[str, ...]:
        """Anchors with the same output as the policy, since they are copies that are identical to it now."""
        how = self.algorithm
        names = [name for name in how.copies if how.anchors.get(name) == how.guidance]
        return tuple(name for name in names if self.model.weights.same(name))

    def still(self, anchor: str) -> AbstractContextManager[None]:
        """Until the context ends, only the weights of this anchor are used (see `Weights.still`)."""
        return self.model.weights.still(anchor)

    def filled(self, anchor: str, rows: Tensor, size: int) -> tuple[Tensor, AbstractContextManager[None]]:
        """Rows of a batch of an anchor, maybe filled up to `size`, and a context for them (process/filled.py)."""
        return rows, nullcontext()

    def batches(
        self, points: PointSet, numbers: Tensor, fresh: bool = False, same: Sequence[str] = ()
    ) -> Iterator[Any]:
        """Microbatches of the points with these numbers; see `passes.batches`."""
        return passes.batches(self, points, numbers, fresh, same)

    def blank(self) -> Any:
        """A row to evaluate a network at, for passes that only other processes need (see passes.py)."""
        raise NotImplementedError

    def update(self, number: int) -> float | None:
        """Sum gradients over processes, clip them, take optimiser step `number`. Returns the norm before clipping.

        None if the gradient is NaN or infinite and the step was skipped; no weight has changed.

        Raises:
            TrainingError: the same, where no step may be skipped (any more).
        """
        for tensor in self.parameters:
            if tensor.grad is None:  # this process had no training points
                tensor.grad = torch.zeros_like(tensor)
        gradients = [tensor.grad for tensor in self.parameters if tensor.grad is not None]
        distributed.add_up([each for each in gradients if not distributed.is_split(each)])
        norm = distributed.whole(torch.nn.utils.clip_grad_norm_(self.parameters, self.run.gradient_clip)).item()
        if not norm < float("inf"):
            self.optimiser.zero_grad()
            self.skipped += 1
            if self.skipped <= self.run.skip_nonfinite:
                return None
            raise TrainingError(
                f"the gradient of iteration {self.iteration + 1} is NaN or infinite; training stopped before the "
                "weights were updated. Lower the learning rate, or try --precision float32"
            )
        self.skipped = 0
        for group in self.optimiser.param_groups:
            group["lr"] = self._rate(number)
        # an interrupt during this step, or in another process: a single update cannot be undone (see `learn`)
        self.sound = self.run.updates_per_iteration > 1
        self.optimiser.step()
        self.optimiser.zero_grad()
        return norm

    def _rate(self, number: int) -> float:
        """The learning rate of optimiser step `number`, halved by every return to a checkpoint."""
        return self.run.rate(number) * 0.5**self.rollbacks

    @property
    def _stored(self) -> list[str]:
        """The weights that checkpoints store."""
        return ["policy", *self.algorithm.copies, "ema", *["reference"] * self.model.weights.own_reference]

    def state_dict(self) -> dict[str, Any]:
        """The state that the rest of the run depends on."""
        troubles = {"skipped": self.skipped, "rollbacks": self.rollbacks}
        return {
            "identity": self.model.identity,
            "iteration": self.iteration,
            "weights": {name: self.model.weights.tensors(name) for name in self._stored},
            "optimiser": self.optimiser.state_dict(),
            "health": self.health.state_dict(),
            **({"troubles": troubles} if any(troubles.values()) else {}),
            **({"adapted": self.adapted} if self.adapted else {}),
        }

    def shards(self) -> dict[str, Tensor]:
        """The sharded tensors by their names in a checkpoint, which gets their layout when it is read.

        The moments of a parameter are laid out like the parameter.
        """
        named = {name: self.model.weights.tensors(name) for name in self._stored}
        found = {f"weights.{name}.{key}": tensor for name, every in named.items() for key, tensor in every.items()}
        for number, parameter in enumerate(self.parameters):
            found |= {f"optimiser.state.{number}.{moment}": parameter for moment in MOMENTS}
        return {name: tensor for name, tensor in found.items() if distributed.is_split(tensor)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: it belongs to another model, or to an algorithm with other copies.
        """
        if other := self.model.unlike(state.get("identity") or {}):
            raise ValueError(
                f"this checkpoint belongs to another model (different {', '.join(other)}): use the model of that run"
            )
        for name in self._stored:
            if name not in state["weights"]:
                raise ValueError(
                    f"this checkpoint has no '{name}' weights, since another algorithm wrote it: use that algorithm"
                )
            self.model.weights.load(name, state["weights"][name])
        load_moments(self.optimiser, state["optimiser"])
        self.health.load_state_dict(state["health"])
        troubles = state.get("troubles", {})
        self.skipped, self.rollbacks = troubles.get("skipped", 0), troubles.get("rollbacks", 0)
        self.adapted = (
            state.get("adapted") or self.adaptive.start()
        )  # older runs, and those of fixed settings, have none
        self.iteration = int(state["iteration"])
