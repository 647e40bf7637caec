"""Score the images of an iteration, some of them while others are still sampled."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from types import TracebackType
from typing import Self

import torch
from torch import Tensor

from ..system import distributed
from . import Metadata, Reward, RewardError, score

AT_ONCE = 4  # simultaneous calls to one reward


class Scoring:
    """Scores of N images by several rewards.

    A reward with `in_background = True` (a server, a judge) is called as soon as a unit of images is complete.
    Meanwhile the next images are sampled. The other rewards are called at the end, with all images at once.

    Args:
        rewards: (name, reward) pairs.
        texts, metadata: for the N images, in order.
        unit: number of consecutive images to score together: those of a prompt, where a reward compares them.
        frames: five axes mean videos (False: samples of any shape).
    """

    def __init__(
        self,
        rewards: Sequence[tuple[str, Reward]],
        texts: Sequence[str],
        metadata: Metadata = None,
        unit: int = 1,
        frames: bool = True,
    ):
        self.rewards, self.texts, self.metadata, self.unit, self.frames = rewards, texts, metadata, unit, frames
        self._waiting = [getattr(reward, "in_background", False) for _, reward in rewards]
        self._held: list[Tensor] = []  # images of an incomplete unit
        self._asked = 0  # images sent to rewards in the background
        self._answers: dict[str, list[Future[Tensor]]] = {}
        self._missed = self._missing()  # before this iteration
        self._threads = ThreadPoolExecutor(AT_ONCE * sum(self._waiting)) if any(self._waiting) else None

    @property
    def slow(self) -> bool:
        """Whether a reward may wait for a server."""
        return any(self._waiting)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._threads:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def add(self, images: Tensor) -> None:
        """Add the next images [B, 3, H, W] or [B, F, 3, H, W], or samples of any shape [B, ...]."""
        if not self._threads:
            return
        self._held.append(images)
        whole = sum(len(part) for part in self._held) // self.unit * self.unit
        if whole:
            held = torch.cat(self._held)
            self._held = [held[whole:]]
            for (name, reward), waits in zip(self.rewards, self._waiting, strict=True):
                if waits:
                    future = self._threads.submit(self._score, name, reward, held[:whole], self._asked)
                    self._answers.setdefault(name, []).append(future)
            self._asked += whole

    def result(self, images: Tensor) -> Tensor:
        """The scores [N, R] of all images; each must have been added before.

        Raises:
            RewardError: a reward failed.
        """
        if not len(images):  # of a process that has nothing to draw
            return torch.empty(0, len(self.rewards))
        columns = []
        for (name, reward), waits in zip(self.rewards, self._waiting, strict=True):
            if waits:
                columns.append(torch.cat([answer.result() for answer in self._answers[name]]))
            else:
                columns.append(self._score(name, reward, images, 0))
        return torch.stack(columns, 1)

    def missing(self) -> dict[str, float]:
        """{"missing_scores": n}, over all processes; empty if no reward counts its missing scores."""
        if not any(hasattr(reward, "missing") for _, reward in self.rewards):
            return {}
        return distributed.merged({"missing_scores": self._missing() - self._missed})

    def _missing(self) -> int:
        return sum(getattr(reward, "missing", 0) for _, reward in self.rewards)

    def _score(self, name: str, reward: Reward, images: Tensor, first: int) -> Tensor:
        rows = slice(first, first + len(images))
        about = self.metadata[rows] if self.metadata else None
        return score(name, reward, images, self.texts[rows], about, self.frames)


@contextmanager
def agreement(slow: bool = False) -> Iterator[None]:
    """Inside, each process scores its own images; if one fails, all processes raise.

    Args:
        slow: a process may wait for servers meanwhile, so the others wait for it longer than usual.

    Raises:
        RewardError: a reward failed in some process.
    """
    failure = None
    try:
        yield
    except RewardError as error:
        failure = error
    with distributed.patiently() if slow else nullcontext():
        said = distributed.messages(str(failure) or "RewardError" if failure else None)
    if said:
        raise failure or RewardError(said[0])


def agreed(scored: Callable[[], Tensor], slow: bool = False) -> Tensor:
    """The scores [N, R] of all processes; `scored` computes those of this one. For `slow` see `agreement`.

    Raises:
        RewardError: a reward failed in some process; all processes raise it.
    """
    with agreement(slow):
        mine = scored()
    return torch.cat(distributed.everyone(mine))
