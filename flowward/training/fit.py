"""The largest batches that fit into memory, found by trying."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from ..process.noise import Noise
from ..process.rollout import Rollout
from ..prompts import Prompt, PromptSet
from .run import Run
from .trainer import Trainer

Peak = Callable[[Callable[[], None]], float]  # work -> bytes that it took at most; inf where they were not there


def cuda_peak(device: torch.device) -> Peak:
    """Measures on a CUDA device.

    Raises:
        ValueError: it is none; other devices do not tell.
    """
    if device.type != "cuda":
        raise ValueError(f"a memory limit is for CUDA devices, the model is on '{device}': leave it out")

    def peak(work: Callable[[], None]) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        try:
            work()
        except torch.OutOfMemoryError:
            return float("inf")
        return torch.cuda.max_memory_allocated(device)

    return peak


def limit(memory: float | Literal["auto"] | None, device: torch.device) -> float | None:
    """Bytes that a run may use, from its `memory`; None where there is no limit, or nothing to measure it with."""
    if memory == "auto":
        return 0.9 * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return None if memory is None else memory * 1e9


def largest(sizes: Sequence[int], peak: Callable[[int], float], limit: float) -> tuple[int, float]:
    """The largest of rising sizes whose peak stays within a limit, and that peak; the first that does not is the last
    that is tried.

    Raises:
        ValueError: not even the first does.
    """
    best: tuple[int, float] | None = None
    for size in sizes:
        found = peak(size)
        if found > limit:
            break
        best = size, found
    if best is None:
        raise ValueError(f"a batch of {sizes[0]} takes more than the limit of {limit / 1e9:.3g} GB already")
    return best


def fitted(trainer: Trainer, limit: float, peak: Peak | None = None) -> tuple[Run, str]:
    """The trainer's run with the largest `rollout_batch` and `microbatch` within `limit` bytes, and a sentence.

    What divides evenly stays what it was: batches change neither samples nor gradients. The first optimiser step adds
    its moments, so they are counted in.

    Raises:
        ValueError: nothing fits, or the device does not tell what it has used.
    """
    peak, run = peak or cuda_peak(trainer.policy.device), trainer.run  # whose microbatch changes below
    points = trainer.points_per_update
    moments = moments_of(trainer)
    sampled, most = largest(
        divisors(run.images, trainer.rollout.leaves), lambda n: peak(lambda: sample(trainer, n)) + moments, limit
    )
    trained, peak_of_training = largest(
        divisors(points, trainer.indivisible), lambda n: peak(lambda: learn(trainer, n)) + moments, limit
    )
    trainer.run = run
    most = max(most, peak_of_training)
    said = (
        f"{sampled} of {run.images} images sampled at once and {trained} of {points} points per pass take "
        f"{most / 1e9:.1f} of {limit / 1e9:.1f} GB"
    )
    return replace(run, rollout_batch=sampled, microbatch=trained), said


def divisors(total: int, unit: int) -> list[int]:
    """Those that are multiples of `unit`, rising."""
    return [size for size in range(unit, total + 1, unit) if total % size == 0]


def moments_of(trainer: Trainer) -> int:
    """Bytes that Adam takes at its first step."""
    return 2 * 4 * sum(tensor.numel() for tensor in trainer.parameters)


def longest(prompts: PromptSet) -> Prompt:
    """The prompt with the most text: models that do not pad take more memory for it."""
    return prompts[max(range(len(prompts)), key=lambda number: len(prompts.texts[number]))]


@torch.no_grad()
def sample(trainer: Trainer, many: int) -> None:
    """What the network and the autoencoder do for so many images that are drawn together."""
    policy, rollout = trainer.policy, trainer.rollout
    at_once = many // rollout.leaves * rollout.breadth
    velocity = policy.under(trainer.algorithm.behaviour, rollout.guidance)
    condition = policy.encode([longest(trainer.prompts)])[torch.zeros(at_once, dtype=torch.long)]
    x = torch.zeros(at_once, *policy.latent_shape, device=policy.device)
    velocity(x, torch.full((at_once,), 0.5, device=policy.device), condition)
    policy.decode(x)


def learn(trainer: Trainer, many: int) -> None:
    """A forward and a backward pass of so many points, with all that the algorithm wants to know of them."""
    points = trainer.algorithm.points(_drawn(trainer), ("fit",))
    trainer.run = replace(trainer.run, microbatch=many)
    for part in trainer.batches(points, torch.arange(many) % len(points), fresh=True):
        loss, _ = trainer.algorithm.loss(trainer.models, part)
        loss.sum().backward()
    trainer.optimiser.zero_grad()


def _drawn(trainer: Trainer) -> Rollout:
    """A group of noise in the place of samples."""
    policy, rollout, run = trainer.policy, trainer.rollout, trainer.run
    condition, group = policy.encode([longest(trainer.prompts)]), torch.zeros(run.group_size, dtype=torch.long)
    noise = Noise(policy.latent_shape, tuple(("fit", number) for number in range(run.group_size)), policy.device)
    drawn = rollout.at(run.seed, 0)(lambda x, t, c: torch.zeros_like(x), condition[group], noise)
    found = Rollout.of([drawn], condition, group, rollout.levels)
    return replace(found, advantage=torch.ones_like(found.advantage))
