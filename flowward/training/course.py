"""The course of a run, from its current iteration to its end: evaluations, metrics, trackers, checkpoints, going back.

What one iteration does is in loop.py.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..rewards.reward import RewardError
from ..system import distributed
from .folder import RunFolder
from .metrics import Step
from .saving import Saver
from .trackers import Trackers

if TYPE_CHECKING:
    from .loop import Loop

OPTIONAL = ("troubles", "versions", "adapted")  # of a state: not in every one, or not in those of older versions
Measures = TypeVar("Measures")
"""the evaluator, for `Loop.measured`"""


class TrainingError(RuntimeError):
    """Training cannot continue; the weights are those of the last good step."""


@dataclass
class Course(Generic[Measures]):
    """One call of `Loop.steps`."""

    loop: Loop[Measures]
    evaluator: Measures | None
    folder: RunFolder | None  # None in all processes but the first, and for a run without a folder
    trackers: Trackers
    seen: int = 0  # training samples so far
    saved: int = 0  # iteration of the last checkpoint
    saver: Saver = field(init=False)

    def steps(self, remarks: Sequence[str]) -> Generator[Step]:
        """The iterations that are left; see `Loop.steps`."""
        loop, lines = self.loop, self.folder.lines() if self.folder else []
        before = next((line for line in lines if line["iteration"] == loop.iteration), None)
        self.saved = loop.iteration
        self.seen = (before or {}).get(loop.noun, loop.iteration * loop.run.samples)  # batch sizes may have changed
        loop.refuse_apart()
        self.saver = Saver(loop.run, self.folder, bool(loop.shards()))
        try:
            yield from self._iterations(before, remarks)
        except BaseException as error:
            self._leave(isinstance(error, (GeneratorExit, TrainingError, RewardError)))
            raise
        self._leave(True)

    def _iterations(self, before: Mapping[str, Any] | None, remarks: Sequence[str]) -> Generator[Step]:
        loop = self.loop
        yield from self._start(before, remarks)
        while loop.iteration < loop.run.iterations:
            if (step := self._next()) is None:
                continue
            yield step
            if loop.ended:
                return
            if loop.stopping and step.index < loop.run.iterations:
                yield from self._stop(step)
                return

    def _leave(self, shared: bool) -> None:
        """Save what is not saved yet; `shared`: every process leaves now, for the same reason.

        Parts are written by all processes or not at all: those that do not leave could not be waited for.
        """
        if self.saver.together and not shared:
            return
        if self.loop.iteration > self.saved and self.loop.sound:
            self._save()
        self.saver.settle()

    def _start(self, before: Mapping[str, Any] | None, remarks: Sequence[str]) -> Generator[Step]:
        """The evaluation before the first iteration, or one that was interrupted or whose line was lost."""
        loop, unmeasured = self.loop, self.folder is not None and "evaluation" not in (before or {})
        if loop.iteration == 0 and self.evaluator:
            yield self._finished(Step(0, {}, [*remarks], {}), self.evaluator)
        elif self.evaluator and loop.due(loop.iteration) and distributed.any_of(unmeasured):
            step = Step.of(before) if before else Step(loop.iteration, {}, [], {})
            yield self._measured_again(step, self.evaluator)

    def _next(self) -> Step | None:
        """One iteration, with its evaluation and checkpoint; None if the run went back to an earlier one."""
        loop = self.loop
        try:
            step = loop.step()
        except TrainingError as error:
            if not self._went_back(str(error)):
                raise
            return None
        self.seen += loop.run.samples
        step = self._finished(step, self.evaluator if loop.due(step.index) else None)
        regular = step.index == loop.run.iterations or step.index % loop.run.checkpoint_every == 0
        if regular or step.evaluation:  # then it may be the best, which the first process alone knows
            loop.refuse_apart()
        best = self._is_best(step)
        if regular or loop.ended or (distributed.any_of(best) if self.saver.together else best):
            self._save()
        self.saver.settle(wait=loop.ended or step.index == loop.run.iterations)
        return step

    def _stop(self, step: Step) -> Generator[Step]:
        """Save, then evaluate. An uninterrupted run lacks this evaluation; nothing else of the run depends on it."""
        if self.saved < step.index:
            self._save()
        self.saver.settle()  # first: the evaluation may be interrupted
        if self.evaluator:
            yield self._measured_again(step, self.evaluator)

    def _finished(self, step: Step, evaluator: Measures | None) -> Step:
        """The step, evaluated if `evaluator` is given, and logged."""
        try:
            if evaluator:
                step = self.loop.measured(step, evaluator, self.folder)
            step = replace(step, health=[*step.health, *self.trackers.news()])
        finally:  # if the evaluation fails, the iteration is logged anyway
            if self.folder:
                self.folder.append(line := step.line(self.seen, self.loop.noun))
                self.trackers.send(line)
        return step

    def _measured_again(self, step: Step, evaluator: Measures) -> Step:
        """The step with an evaluation; its line in metrics.jsonl is replaced."""
        step = self.loop.measured(step, evaluator, self.folder)
        if self.folder:
            self.folder.amend(line := step.line(self.seen, self.loop.noun))
            self.trackers.send(line)
        return step

    def _save(self) -> None:
        if self.saver.writes:
            self.saver.save(self.loop.iteration, self.loop.state_dict())
            self.saved = self.loop.iteration

    def _is_best(self, step: Step) -> bool:
        """Whether the step was evaluated, with the best headline score so far."""
        if not self.folder or not step.evaluation:
            return False
        found = dict(self.folder.headlines())
        earlier = [mean for index, mean in found.items() if index < step.index]
        return step.index in found and all(found[step.index] > mean for mean in earlier)

    def _went_back(self, why: str) -> bool:
        """Go back to the last checkpoint and halve the learning rate, if the run may; every process does the same."""
        loop, rollbacks = self.loop, self.loop.rollbacks + 1
        if rollbacks > loop.run.rollback or loop.run.output is None:
            return False
        needed = [name for name in loop.state_dict() if name not in OPTIONAL]
        self.saver.settle()
        if loop.run.checkpoint_async:
            distributed.wait()  # until the first process has done so
        failed, state = loop.iteration + 1, RunFolder.open(loop.run.output).state(*needed, shards=loop.shards())
        if state is None:
            return False
        loop.load_state_dict(state)
        loop.optimiser.zero_grad()
        loop.rollbacks, loop.sound = rollbacks, True
        if self.folder:
            self.folder.forget_after(loop.iteration)
        self.trackers.go_back(loop.iteration)
        slower = f"{0.5**rollbacks:g} times the learning rate"
        loop.told.append(f"went back from iteration {failed} to {loop.iteration}, and goes on with {slower}: {why}")
        self.seen, self.saved = loop.iteration * loop.run.samples, loop.iteration
        return True
