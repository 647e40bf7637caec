"""Drawers: weights, numbers and prompts go in, samples and images come out. And how blocks are dealt out to them.

A drawer may be an actor on another machine, or a server. A block is what one process would draw at once, so its images
have the same bits whoever draws it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import torch
from torch import Tensor

from ...process.policy import Condition, Policy
from ...process.rollout import Drawn, Sampling
from ...prompts import Prompt
from ..drawing import drawn_by
from ..run import Run

PATIENCE = 10.0  # seconds that the end of a run waits for each drawer


@dataclass(frozen=True)
class Block:
    """n images of an iteration that are drawn at once."""

    iteration: int
    numbers: Tensor  # [n] of the images in their iteration
    prompts: tuple[Prompt, ...]  # P, each once
    condition: Condition  # P rows: the same, encoded
    row: Tensor  # [n] which of them each image has

    @classmethod
    def of(cls, iteration: int, numbers: Tensor, prompts: Sequence[Prompt], condition: Condition, row: Tensor) -> Block:
        """With those of many prompts that these images have; `row` [n] says which. Tensors go to the CPU."""
        used, own = row.unique(return_inverse=True)
        encoded = Condition({name: tensor.cpu() for name, tensor in condition[used].tensors.items()})
        return cls(iteration, numbers, tuple(prompts[i] for i in used.tolist()), encoded, own)


@dataclass(frozen=True)
class Sheet:
    """The images of a block."""

    drawn: Drawn  # on the CPU
    images: Tensor  # [n, 3, H, W] or [n, F, 3, H, W] in [0, 1], on the CPU
    evaluations: int  # of the network, in samples

    def on(self, device: torch.device) -> Drawn:
        """The samples, with the finished ones on a device; what was recorded of their steps stays on the CPU."""
        return replace(self.drawn, x0=self.drawn.x0.to(device))


class Drawer(Protocol):
    """Draws images somewhere. It is called from one thread, and may wait."""

    def take(self, version: int, weights: Any) -> None: ...  # draw with these from now on: see Studio.share
    def draw(self, block: Block) -> Sheet: ...
    def close(self) -> None: ...  # from any thread; a call that waits then ends


def _as_they_are(weights: Mapping[str, Tensor]) -> Any:
    return weights


@dataclass(frozen=True)
class Studio:
    """All drawers of a process."""

    drawers: Sequence[Drawer]
    share: Callable[[Mapping[str, Tensor]], Any] = _as_they_are  # once per version: what drawers `take`
    close: Callable[[], None] = field(default=lambda: None)  # after the drawers


class LocalDrawer:
    """Draws in the process that it is made in, with a policy of its own."""

    def __init__(self, policy: Policy, rollout: Sampling, run: Run):
        """`rollout` need not be bound to the model."""
        self.policy, self.rollout, self.run = policy, rollout.bound(policy.times), run

    def take(self, version: int, weights: Mapping[str, Tensor]) -> None:
        """Raises ValueError if they belong to another model."""
        self.policy.weights.load("policy", dict(weights))
        for key, tensor in self.policy.weights.tensors("policy").items():
            tensor.requires_grad_(weights[key].requires_grad)  # torch chooses kernels by it

    def draw(self, block: Block) -> Sheet:
        """The images of a block; nothing is left on the device."""
        policy, before = self.policy, self.policy.evaluated
        tensors = {name: tensor.to(policy.device) for name, tensor in block.condition.tensors.items()}
        with policy.weights.still("policy"):
            drawn = drawn_by(policy, self.rollout, self.run, block.iteration, "policy")
            samples, images = drawn(Condition(tensors)[block.row], block.numbers)
        return Sheet(replace(samples, x0=samples.x0.cpu()), images, policy.evaluated - before)

    def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, eq=False)
class Version:
    """Weights that drawers take."""

    number: int
    weights: Any  # see Studio.share


class Dealer:
    """Deals blocks out, in order, to whichever drawer is free: a slow one gets fewer."""

    def __init__(self, studio: Studio):
        self._studio = studio
        self._closed = False
        self._jobs: SimpleQueue[tuple[Future[Sheet], Version, Block] | None] = SimpleQueue()
        self._threads = [Thread(target=self._work, args=(each,), daemon=True) for each in studio.drawers]
        for thread in self._threads:
            thread.start()

    def share(self, weights: Mapping[str, Tensor], number: int) -> Version:
        """A version of the weights. They must not change from now on."""
        return Version(number, self._studio.share(weights))

    def deal(self, version: Version, block: Block) -> Future[Sheet]:
        """What these weights draw. `cancel` it if it is not wanted any more."""
        future: Future[Sheet] = Future()
        self._jobs.put((future, version, block))
        return future

    def _work(self, drawer: Drawer) -> None:
        taken: Version | None = None
        while (job := self._jobs.get()) is not None:
            future, version, block = job
            if self._closed or not future.set_running_or_notify_cancel():
                continue
            try:
                if taken is not version:
                    drawer.take(version.number, version.weights)
                    taken = version
                future.set_result(drawer.draw(block))
            except BaseException as error:  # it is raised where the images are asked for
                future.set_exception(error)

    def close(self) -> None:
        """End the drawers, whatever they do, and their threads. Blocks that wait are not drawn."""
        self._closed = True
        for _ in self._threads:
            self._jobs.put(None)
        for drawer in self._studio.drawers:
            drawer.close()
        for thread in self._threads:
            thread.join(PATIENCE)
        self._studio.close()
