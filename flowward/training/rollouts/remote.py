"""A trainer whose images are drawn elsewhere, by weights of a fixed number of iterations before.

While iteration i is trained on, drawers already draw the images up to iteration i + k. Which weights draw which images
depends on i and k alone, so a run is a function of its seed and k, however many drawers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from torch import Tensor

from ...algorithms.algorithm import Algorithm, refuse_incomplete, stale_of
from ...evaluation.evaluate import Evaluator
from ...learning.points import PointSet
from ...process.policy import Condition, Policy
from ...process.rollout import Drawn, Rollout
from ...prompts import Prompt, PromptSet
from ...rewards import Reward, terms
from ...rewards.scoring import Scoring
from ..folder import RunFolder
from ..metrics import Step
from ..run import Run
from ..teachers import NONE, Teachers
from ..trainer import Graft, Trainer
from .drawers import Block, Dealer, Sheet, Studio, Version
from .versions import ANCHOR, Versions, whole


def refuse_stale(algorithm: Algorithm, run: Run, stale: int) -> None:
    """Raises ValueError if this algorithm, or this run, cannot train on samples of earlier weights."""
    if not stale:
        return
    if run.curriculum:
        raise ValueError(
            "a curriculum chooses prompts by the last rewards, so no image can be drawn ahead: set --stale 0 or "
            "--curriculum 0"
        )
    if stale_of(algorithm) == "none":
        how = " or --algorithm.behaviour old" if "old" in algorithm.copies else ""
        raise ValueError(
            f"{type(algorithm).__name__} with behaviour '{algorithm.behaviour}' assumes that the current policy drew "
            f"its samples, so no image can be drawn ahead: set --stale 0{how}"
        )


def kept_for(algorithm: Algorithm, stale: int) -> list[str]:
    """The weights that each version keeps: those that draw, and `old` if it is the anchor of older samples."""
    return [algorithm.behaviour, *[ANCHOR] * (stale > 0 and stale_of(algorithm) == "anchored")]


class RemoteTrainer(Trainer):
    """The training loop, with images from drawers."""

    def __init__(
        self,
        algorithm: Algorithm,
        policy: Policy,
        reward: Reward,
        prompts: PromptSet,
        run: Run,
        studio: Callable[[], Studio],
        stale: int = 0,
        graft: Graft | None = None,
        scorers: Callable[[], Mapping[str, Reward]] = dict,
        teachers: Teachers = NONE,
    ):
        """
        Args:
            studio: opens the drawers, when the first image is asked for or `steps` begins.
            stale: images are drawn by the weights of so many iterations before.
            scorers: opens what scores images in place of the rewards with these names.
            teachers: see Trainer.

        Raises:
            ValueError: see Trainer; or the algorithm or a curriculum needs samples of the current weights.
        """
        refuse_incomplete(algorithm)
        refuse_stale(algorithm, run, stale)
        super().__init__(algorithm, policy, reward, prompts, run, self._fetched, graft, teachers)
        self.stale = stale
        self.versions = Versions(policy.weights, kept_for(algorithm, stale), stale)
        self._open, self._open_scorers = studio, scorers
        self._dealer: Dealer | None = None
        self._scorers: Mapping[str, Reward] = {}
        self._shared: dict[int, Version] = {}
        self._drawn: dict[int, list[Future[Sheet]]] = {}  # blocks of iterations that have been asked for

    def steps(
        self, evaluator: Evaluator | None = None, folder: RunFolder | None = None, remarks: Sequence[str] = ()
    ) -> Generator[Step]:
        """Train to the end of the run; see `Loop.steps`. The drawers end with it."""
        try:
            if self.iteration < self.run.iterations:
                self._begin()  # they load their models during the first evaluation
            yield from super().steps(evaluator, folder, remarks)
        finally:
            self.close()

    def _begin(self) -> Dealer:
        if self._dealer is None:
            self._dealer, self._scorers = Dealer(self._open()), self._open_scorers()
        return self._dealer

    def close(self) -> None:
        """End the drawers. They are opened again if images are asked for again."""
        self._forget()
        if self._dealer is not None:
            self._dealer.close()
        self._dealer, self._scorers = None, {}

    def _forget(self) -> None:
        """Nothing that was asked for is wanted any more."""
        for blocks in self._drawn.values():
            for each in blocks:
                each.cancel()
        self._drawn, self._shared = {}, {}

    def sample(
        self, prompts: Sequence[Prompt], index: int, seen: Callable[[Tensor], None] = lambda images: None
    ) -> tuple[Rollout, Tensor]:
        """The images of an iteration; those of later ones are asked for first. See `Trainer.sample`."""
        dealer = self._begin()
        self.versions.keep(index)
        for ahead in range(index, index + self.stale + 1):
            if ahead not in self._drawn and (ahead == index or ahead < self.run.iterations):
                self._drawn[ahead] = self._asked(dealer, ahead)
        self._shared = {number: each for number, each in self._shared.items() if number >= index - self.stale}
        return super().sample(prompts, index, seen)

    def _asked(self, dealer: Dealer, index: int) -> list[Future[Sheet]]:
        """The blocks of an iteration, dealt out. All processes must call it."""
        number = self.versions.of(index)
        if number not in self._shared:
            name = self.algorithm.behaviour
            weights = whole(self.versions.at(number, name), self.policy.weights.tensors(name))
            self._shared[number] = dealer.share(weights, number)
        prompts = [self.prompts[i] for i in self.order.choose(index, self.run.groups).indices]
        condition, group, mine = self.encode(prompts), self._group(), self._mine()
        return [
            dealer.deal(self._shared[number], Block.of(index, rows, prompts, condition, group[rows]))
            for rows in (mine.split(self.run.rollout_batch) if len(mine) else ())
        ]

    def _fetched(
        self, prompts: Sequence[Prompt], condition: Condition, index: int, numbers: Tensor
    ) -> Iterator[tuple[Drawn, Tensor]]:
        """The images of an iteration that have been asked for, in the order of their numbers."""
        blocks = self._drawn.pop(index)
        try:
            while blocks:
                sheet = blocks.pop(0).result()
                self.policy.evaluated += sheet.evaluations
                yield sheet.on(self.policy.device), sheet.images
        finally:
            for each in blocks:
                each.cancel()

    def learn(self, points: PointSet) -> dict[str, float]:
        """The optimiser steps of one iteration, anchored to the `old` of the version that drew the samples."""
        with self.versions.anchored(self.iteration):
            return super().learn(points)

    def _scoring(self, chosen: Sequence[int]) -> Scoring:
        found = super()._scoring(chosen)
        if not self._scorers:
            return found
        rewards = [(name, self._scorers.get(name, reward)) for name, _, reward in terms(self.reward)]
        return Scoring(rewards, found.texts, found.metadata, found.unit, found.frames)

    def state_dict(self) -> dict[str, Any]:
        """The state that the rest of the run depends on, with the earlier weights that are still to be used."""
        versions = self.versions.state_dict(self.iteration)
        return super().state_dict() | ({"versions": versions} if versions else {})

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: it belongs to another model, or to an algorithm with other copies.
        """
        super().load_state_dict(state)
        self._forget()
        self.versions.load_state_dict(state.get("versions", {}) if self.stale else {})
