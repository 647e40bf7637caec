"""What an image costs each algorithm: network evaluations, counted, and seconds, measured.

A budget in evaluations counts forward passes. A pass forward and backward counts as many of them as it took time when
both were measured on this model. Seconds are those of the fastest of three iterations on one thread, without
evaluations, measured one algorithm at a time before any run begins; on a processor CPU seconds, which other programs
change least. Both are written down once per study, so that a
study which was stopped goes on with the same runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..process.policy import Policy
from ..prompts import Prompt
from ..training import assembly

ITERATIONS = 3  # that are timed
ROWS = 16  # of the passes that are compared
REPEATS = 5


@dataclass(frozen=True)
class Cost:
    """Of one training image of an algorithm."""

    images: int  # per iteration
    forward: float  # passes forward alone
    trained: float  # passes forward and backward
    backward: float  # what such a pass costs, in forward passes
    seconds: float

    @property
    def evaluations(self) -> float:
        """In forward passes."""
        return self.forward + self.backward * self.trained

    def images_for(self, budget: str, amount: float) -> float:
        """Training images that a budget pays for."""
        return amount / {"images": 1.0, "evaluations": self.evaluations, "seconds": self.seconds}[budget]


def measured(settings: Any, backward: float | None = None) -> Cost:
    """Train a few iterations of these settings without writing anything.

    Args:
        settings: training.config.Settings.
        backward: the cost of a pass forward and backward (None: measured here).

    Raises:
        ValueError, RewardError, TrainingError: the run cannot start, or fails.
    """
    with _one_thread():
        return _measured(settings, backward)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the runs have; the other cores are theirs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _measured(settings: Any, backward: float | None) -> Cost:
    made = assembly.assembled(replace(settings, run=replace(settings.run, output=None)), say=lambda text: None)
    trainer, seconds, counts = made.trainer, list[float](), {"all": 0.0, "trained": 0.0}
    backward = pass_ratio(trainer.policy, trainer.prompts[0]) if backward is None else backward
    clock = time.process_time if trainer.policy.device.type == "cpu" else time.perf_counter
    trainer.step()  # in the first one, copies are what the policy is, and cost nothing
    for _ in range(ITERATIONS):
        started = clock()
        trainer.step()
        seconds.append(clock() - started)
        counts = {name: counts[name] + own for name, own in trainer.speedometer.evaluations().items()}
    images = trainer.run.images
    per_image = {name: own / (ITERATIONS * images) for name, own in counts.items()}
    forward = per_image["all"] - per_image["trained"]
    return Cost(images, forward, per_image["trained"], backward, min(seconds) / images)


def pass_ratio(policy: Policy, prompt: Prompt) -> float:
    """The time of a pass forward and backward over that of one forward, the fastest of each; at least 1."""
    x = torch.randn(ROWS, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    t, condition = torch.full((ROWS,), 0.5, device=policy.device), policy.encode([prompt] * ROWS)

    def there() -> None:
        with torch.no_grad():
            policy.velocity(x, t, condition)

    def and_back() -> None:
        policy.velocity(x, t, condition).sum().backward()

    clock = time.process_time if policy.device.type == "cpu" else time.perf_counter
    ratio = _fastest(and_back, clock) / _fastest(there, clock)
    for tensor in policy.weights.tensors("policy").values():
        tensor.grad = None
    return max(1.0, ratio)


def _fastest(work: Callable[[], None], clock: Callable[[], float]) -> float:
    found = []
    for _ in range(REPEATS):
        started = clock()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        found.append(clock() - started)
    return min(found[1:])
