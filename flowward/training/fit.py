"""Find the largest batches that fit into GPU memory by trying them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from ..process.noise import Noise
from ..process.rollout import Rollout
from ..prompts import Prompt, PromptSet
from ..system import distributed
from .run import Run
from .trainer import Trainer

Peak = Callable[[Callable[[], None]], float]  # work -> its peak memory in bytes; inf if memory ran out


def cuda_peak(device: torch.device) -> Peak:
    """Measures peak memory on a CUDA device.

    Raises:
        ValueError: this is another kind of device.
    """
    if device.type != "cuda":
        raise ValueError(f"--memory works only on CUDA devices, but the model is on '{device}': leave it out")

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
    """Bytes that a run may use, from its `memory`; None without a limit, or for `auto` without a CUDA device."""
    if memory == "auto":
        return 0.9 * torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    return None if memory is None else memory * 1e9


def largest(
    sizes: Sequence[int], peak: Callable[[int], float], limit: float, foreseen: bool = False
) -> tuple[int, float]:
    """The largest of rising sizes whose peak stays within a limit, and that peak. Stops at the first failure.

    Args:
        foreseen: stop before a size that would exceed the limit, if memory grows as it did between the last two. For
            passes that need all processes: one that runs out of memory in the middle of a pass loses the others.

    Raises:
        ValueError: even the first one exceeds the limit.
    """
    tried: list[tuple[int, float]] = []
    best: tuple[int, float] | None = None
    for size in sizes:
        if foreseen and tried and _expected(tried, size) > limit:
            break
        tried.append((size, found := peak(size)))
        if found > limit:
            break
        best = size, found
    if best is None:
        raise ValueError(
            f"even a batch of {sizes[0]} needs more than the limit of {limit / 1e9:.3g} GB: raise --memory, lower "
            "--size, or use --gradient-checkpointing"
        )
    return best


def _expected(tried: Sequence[tuple[int, float]], size: int) -> float:
    """The peak at a larger size: on the line through the last two, or in proportion to the only one."""
    (a, low), (b, high) = tried[-2:] if len(tried) > 1 else [(0, 0.0), tried[-1]]
    return high + (high - low) * (size - b) / (b - a)


def fitted(trainer: Trainer, limit: float, peak: Peak | None = None) -> tuple[Run, str]:
    """The trainer's run with the largest `rollout_batch` and `microbatch` within `limit` bytes, and a sentence.

    These sizes change neither samples nor gradients. Adam's moments are included, since the first optimiser step
    allocates them.

    Raises:
        ValueError: nothing fits, or the device cannot measure memory.
    """
    peak, run = peak or cuda_peak(trainer.policy.device), trainer.run  # `learn` changes trainer.run
    points, together = trainer.points_per_update, trainer.policy.weights.collective
    if together:
        peak = _of_all(peak)
    more = beside(trainer)
    sampled, most = largest(
        divisors(run.images, trainer.rollout.leaves),
        lambda n: peak(lambda: sample(trainer, n)) + more,
        limit,
        together,
    )
    trained, peak_of_training = largest(
        divisors(points, trainer.indivisible), lambda n: peak(lambda: learn(trainer, n)) + more, limit, together
    )
    trainer.run = run
    most = max(most, peak_of_training)
    said = (
        f"batches chosen for --memory: {sampled} of {run.images} images sampled at once, {trained} of {points} points "
        f"per training pass; peak {most / 1e9:.1f} of {limit / 1e9:.1f} GB"
    )
    return replace(run, rollout_batch=sampled, microbatch=trained), said


def _of_all(peak: Peak) -> Peak:
    """The largest peak of all processes, so that all go on with the same sizes."""
    return lambda work: distributed.merged({"bytes": peak(work)}, max)["bytes"]


def divisors(total: int, unit: int) -> list[int]:
    """The divisors of `total` that are multiples of `unit`, rising."""
    return [size for size in range(unit, total + 1, unit) if total % size == 0]


def beside(trainer: Trainer) -> int:
    """Bytes in this process that passes do not show: Adam's moments, which its first step allocates, and with several
    updates the copies of weights and moments to which a failed iteration goes back.
    """
    weights = sum(distributed.part(tensor).numel() for tensor in trainer.parameters)
    return 4 * weights * (2 + 3 * (trainer.run.updates_per_iteration > 1))


def longest(prompts: PromptSet) -> Prompt:
    """The prompt with the longest text: models without padding need more memory for it."""
    return prompts[max(range(len(prompts)), key=lambda number: len(prompts.texts[number]))]


@torch.no_grad()
def sample(trainer: Trainer, many: int) -> None:
    """The work of the network and the autoencoder for `many` images sampled at once."""
    policy, rollout = trainer.policy, trainer.rollout
    at_once = many // rollout.leaves * rollout.breadth
    velocity = policy.under(trainer.algorithm.behaviour, rollout.guidance)
    condition = trainer.encode([longest(trainer.prompts)])[torch.zeros(at_once, dtype=torch.long)]
    x = torch.zeros(at_once, *policy.latent_shape, device=policy.device)
    velocity(x, torch.full((at_once,), 0.5, device=policy.device), condition)
    policy.decode(x)


def learn(trainer: Trainer, many: int) -> None:
    """A forward and a backward pass for `many` training points, including the anchors of the algorithm."""
    points = trainer.algorithm.points(_drawn(trainer), ("fit",))
    trainer.microbatch = many
    for part in trainer.batches(points, torch.arange(many) % len(points), fresh=True):
        loss, _ = trainer.algorithm.loss(trainer.models, part)
        loss.sum().backward()
    trainer.optimiser.zero_grad()


def _drawn(trainer: Trainer) -> Rollout:
    """A group of noise instead of samples."""
    policy, rollout, run = trainer.policy, trainer.rollout, trainer.run
    condition, group = trainer.encode([longest(trainer.prompts)]), torch.zeros(run.group_size, dtype=torch.long)
    noise = Noise(policy.latent_shape, tuple(("fit", number) for number in range(run.group_size)), policy.device)
    drawn = rollout.at(run.seed, 0)(lambda x, t, c: torch.zeros_like(x), condition[group], noise)
    found = Rollout.of([drawn], condition, group, rollout.levels)
    return replace(found, advantage=torch.ones_like(found.advantage))
