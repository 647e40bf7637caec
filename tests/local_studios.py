"""Drawers in threads of this process, each with a model of its own, and trainers that they draw for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from tiny_runs import TEXTS, bright, small, taught
from torch import Tensor
from torch.backends import cuda

from flowward import models, prompts
from flowward.process.policy import Policy
from flowward.process.rollout import Sampling
from flowward.training.rollouts.drawers import Block, Drawer, LocalDrawer, Sheet, Studio
from flowward.training.rollouts.remote import RemoteTrainer
from flowward.training.run import Run
from flowward.training.trainer import Trainer


@contextmanager
def plain_attention() -> Iterator[None]:
    """Which attention torch may use is one setting for all threads, and models set it: here it is always the same."""
    before = cuda.flash_sdp_enabled(), cuda.mem_efficient_sdp_enabled(), cuda.cudnn_sdp_enabled()
    switches = cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp
    try:
        for switch in switches:
            switch(False)
        yield
    finally:
        for switch, was in zip(switches, before, strict=True):
            switch(was)


class Noted(LocalDrawer):
    """A drawer that notes what it takes and draws."""

    def __init__(self, policy: Policy, rollout: Sampling, run: Run):
        super().__init__(policy, rollout, run)
        self.taken: list[int] = []
        self.drawn: list[tuple[int, int]] = []  # iteration, version
        self.closed = False

    def take(self, version: int, weights: Mapping[str, Tensor]) -> None:
        self.taken.append(version)
        super().take(version, weights)

    def draw(self, block: Block) -> Sheet:
        self.drawn.append((block.iteration, self.taken[-1]))
        return super().draw(block)

    def close(self) -> None:
        self.closed = True


def drawers(tiny: str, algorithm: Any, run: Run, many: int, rank: int | None = None) -> list[Any]:
    return [Noted(models.load(tiny, rank, "float32"), algorithm.rollout, run) for _ in range(many)]


def plain(tiny: str, algorithm: Any, run: Run, rank: int | None = None) -> Trainer:
    policy, texts = models.load(tiny, rank, "float32"), prompts.of("mine", TEXTS)
    return Trainer(algorithm, policy, bright, texts, run, teachers=taught(algorithm, policy, texts))


def remote(
    tiny: str,
    algorithm: Any,
    run: Run | None = None,
    stale: int = 0,
    many: int = 1,
    rank: int | None = None,
    studio: Callable[[], Studio] | None = None,
    **given: Any,
) -> RemoteTrainer:
    """With drawers of its own; they are `one.given` once it has begun."""
    run = run or small()
    made: list[Drawer] = []

    def opened() -> Studio:
        made[:] = drawers(tiny, algorithm, run, many, rank)
        return Studio(made)

    texts = prompts.of("mine", TEXTS)
    policy = models.load(tiny, rank, "float32")
    given = {"teachers": taught(algorithm, policy, texts), **given}
    one = RemoteTrainer(algorithm, policy, bright, texts, run, studio or opened, stale, **given)
    one.given = made  # type: ignore[attr-defined]
    return one


def weights(one: Trainer) -> dict[str, dict[str, Tensor]]:
    """Policy and copies."""
    return {
        name: {key: tensor.detach().clone() for key, tensor in one.policy.weights.tensors(name).items()}
        for name in one._stored
    }


def same(a: Any, b: Any) -> bool:
    return all(torch.equal(tensor, b[name][key]) for name, own in a.items() for key, tensor in own.items())
