"""Measuring flowward itself: what an iteration costs beyond the network evaluations that it cannot do without."""

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
from ..process.policy import Condition, Policy
from ..prompts import PromptSet
from ..rewards import Reward
from .run import Run
from .trainer import Trainer


@dataclass(frozen=True)
class Call:
    """One network evaluation: enough to do the same work again."""

    what: str  # "forward", "forward+backward" or "decode"
    batch: int
    again: Callable[[], None]


@dataclass(frozen=True)
class Overhead:
    ratio: float  # of the medians
    iteration: float  # seconds
    networks: float  # seconds
    calls: dict[str, int]  # network evaluations per iteration, in samples
    peak_memory: float | None  # bytes, of the process; None where the system does not tell


class Recorder:
    """Stands before a policy and notes each network evaluation."""

    def __init__(self, policy: Policy):
        self.calls: list[Call] = []
        self._velocity, self._decode = policy.velocity, policy.decode
        policy.velocity = self.velocity  # type: ignore[method-assign]
        policy.decode = self.decode  # type: ignore[method-assign]
        self._policy = policy

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        backward = torch.is_grad_enabled() and weights == "policy"
        x, t = x.detach(), t.detach()

        def again() -> None:
            if backward:
                self._velocity(x, t, condition, weights).sum().backward()
            else:
                with torch.no_grad():
                    self._velocity(x, t, condition, weights)

        self.calls.append(Call("forward+backward" if backward else "forward", len(x), again))
        return self._velocity(x, t, condition, weights)

    def decode(self, x0: Tensor) -> Tensor:
        def again() -> None:
            self._decode(x0)

        self.calls.append(Call("decode", len(x0), again))
        return self._decode(x0)

    def restore(self) -> None:
        del self._policy.velocity, self._policy.decode  # the class's own methods show again


def overhead(
    algorithm: Algorithm, policy: Policy, reward: Reward, prompts: PromptSet, run: Run, repeats: int = 5
) -> Overhead:
    """Time of a training iteration over that of its bare network evaluations, the two interleaved in one process.

    The first iteration warms up (its copies are still what the policy is, and cost less), the second is recorded: every
    forward, backward and decode is then repeated alone, on the same shapes and weights, after each timed iteration.
    Rewards, credit, noise, the optimiser, the copies and the loop are what the ratio leaves over.
    """
    trainer = Trainer(algorithm, policy, reward, prompts, run)
    trainer.step()
    recorder = Recorder(policy)
    trainer.step()
    calls = recorder.calls
    recorder.restore()
    whole, bare = [], []
    for _ in range(repeats):
        whole.append(seconds(trainer.step))
        bare.append(seconds(lambda: repeat(calls)))
        trainer.optimiser.zero_grad()
    counts: Counter[str] = Counter()
    for call in calls:
        counts[call.what] += call.batch
    iteration, networks = statistics.median(whole), statistics.median(bare)
    return Overhead(iteration / networks, iteration, networks, dict(counts), _peak_memory())


def _peak_memory() -> float | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def repeat(calls: list[Call]) -> None:
    for call in calls:
        call.again()


def seconds(work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started
