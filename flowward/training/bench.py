"""Overhead of flowward: time of an iteration compared with its network evaluations alone."""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..algorithms.algorithm import Algorithm
from ..process.policy import Condition, Policy, graphed
from ..prompts import PromptSet
from ..rewards import Reward
from .run import Run
from .trainer import Trainer


@dataclass(frozen=True)
class Call:
    """One network evaluation, with a function that repeats it."""

    what: str  # "forward", "forward+backward", "decode" or "decode+backward"
    batch: int
    again: Callable[[], None]


@dataclass(frozen=True)
class Overhead:
    """Median times of a training iteration and of its network evaluations alone."""

    ratio: float  # iteration / networks
    iteration: float  # seconds
    networks: float  # seconds
    calls: dict[str, int]  # network evaluations per iteration, in samples
    peak_memory: float | None  # bytes, of the process; None if the operating system does not report it


class Recorder:
    """Wraps a policy and records each network evaluation."""

    def __init__(self, policy: Policy):
        self.calls: list[Call] = []
        self._velocity, self._decode, self._pullback = policy.velocity, policy.decode, policy.pullback
        policy.velocity = self.velocity  # type: ignore[method-assign]
        policy.decode = self.decode  # type: ignore[method-assign]
        policy.pullback = self.pullback  # type: ignore[method-assign]
        self._policy = policy

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        backward, moving, fixed = graphed(x, weights), x.requires_grad, x.detach()

        def again() -> None:
            if backward:
                self._velocity(fixed.clone().requires_grad_(moving), t, condition, weights).sum().backward()
            else:
                with torch.no_grad():
                    self._velocity(fixed, t, condition, weights)

        self.calls.append(Call("forward+backward" if backward else "forward", len(x), again))
        return self._velocity(x, t, condition, weights)

    def decode(self, x0: Tensor) -> Tensor:
        def again() -> None:
            self._decode(x0)

        self.calls.append(Call("decode", len(x0), again))
        return self._decode(x0)

    def pullback(self, x0: Tensor, back: Callable[[Tensor], tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        def again() -> None:
            self._pullback(x0, back)

        self.calls.append(Call("decode+backward", len(x0), again))
        return self._pullback(x0, back)

    def restore(self) -> None:
        del (
            self._policy.velocity,
            self._policy.decode,
            self._policy.pullback,
        )  # the methods of the class are visible again


def overhead(
    algorithm: Algorithm, policy: Policy, reward: Reward, prompts: PromptSet, run: Run, repeats: int = 5
) -> Overhead:
    """See `of`: the overhead of a run that begins."""
    return of(Trainer(algorithm, policy, reward, prompts, run), repeats)


def of(trainer: Trainer, repeats: int = 5) -> Overhead:
    """Time of a training iteration divided by the time of its network evaluations, interleaved in one process.

    The first iteration is a warm-up: copies are still identical to the policy, so it costs less. The second one is
    recorded. After each timed iteration, every recorded forward, backward and decode is repeated alone, with the same
    shapes and weights. On one thread of a processor CPU seconds count, which other programs change least. The rest is
    overhead: rewards, credit, noise, the optimiser, the copies and the loop.
    """
    trainer.step()
    recorder = Recorder(trainer.policy)
    trainer.step()
    calls = recorder.calls
    recorder.restore()
    alone = trainer.policy.device.type == "cpu" and torch.get_num_threads() == 1
    clock = time.process_time if alone else time.perf_counter
    whole, bare = [], []
    for _ in range(repeats):
        whole.append(seconds(trainer.step, clock))
        bare.append(seconds(lambda: repeat(calls), clock))
        trainer.optimiser.zero_grad()
    counts: Counter[str] = Counter()
    for call in calls:
        counts[call.what] += call.batch
    iteration, networks = statistics.median(whole), statistics.median(bare)
    return Overhead(iteration / networks, iteration, networks, dict(counts), peak_memory())


def peak_memory() -> float | None:
    """Largest number of bytes that this process has had so far; None if the operating system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def repeat(calls: list[Call]) -> None:
    for call in calls:
        call.again()


def seconds(work: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    work()
    return clock() - started
