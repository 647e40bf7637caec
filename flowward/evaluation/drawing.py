"""Drawing the images of an evaluation: image k depends only on the seed, on k and its prompt."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from ..process.filled import filled
from ..process.noise import Noise
from ..process.policy import Policy
from ..process.rollout import Sampler, bound_to
from ..prompts import Prompt
from ..rewards import RewardError
from ..rewards.scoring import agreement
from ..system import distributed, memory
from .measurement import numbered


class NotFinite(RewardError):
    """The samples of a model are NaN or infinite, so their scores mean nothing."""


def draw(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    seed: int,
    weights: str = "policy",
    batch: int | None = None,
) -> Tensor:
    """One image per prompt, [N, 3, H, W] on the CPU; image k depends only on (seed, k) and its prompt.

    Samples that are no images are [N, ...]: see `policy.medium`.

    Raises:
        NotFinite: samples are NaN or infinite.
    """
    numbers = distributed.share(torch.arange(len(prompts)))
    with agreement(), closing(batches(policy, prompts, sampler, seed, weights, batch, numbers)) as drawn:
        mine = [images for _, images in drawn]
    return of_all(mine)


def of_all(mine: Sequence[Tensor]) -> Tensor:
    """The parts of all teams, joined in order."""
    return torch.cat(distributed.everyone(torch.cat([*mine]) if mine else torch.empty(0)))


def dealt_out(prompts: Sequence[Prompt], together: bool) -> list[Tensor]:
    """The numbers of the images that each process draws and scores: whole prompts, where images are compared."""
    if not together:
        return list(torch.arange(len(prompts)).tensor_split(distributed.teams()))
    prompt = torch.from_numpy(numbered(prompts))
    return [torch.isin(prompt, part).nonzero().flatten() for part in prompt.unique().tensor_split(distributed.teams())]


def at_once(policy: Policy) -> int:
    """Number of images (or videos) that make two megapixels; a video counts once per latent frame."""
    return min(200, max(1, 2**21 // policy.medium.size))


def batches(
    policy: Policy,
    prompts: Sequence[Prompt],
    sampler: Sampler,
    seed: int,
    weights: str,
    batch: int | None,
    mine: Tensor,
) -> Generator[tuple[list[int], Tensor]]:
    """Batches of image numbers and images, until this process has sampled its own: `mine` [n].

    Close it: if it is left early, it makes the passes that the other processes still need.
    """
    size = batch or at_once(policy)
    parts = list(mine.split(size)) if len(mine) else []  # maybe fewer images than processes
    steps = distributed.in_step(parts, torch.zeros(1, dtype=torch.long), policy.weights.collective)
    sample = _filled(policy, _sampling(policy, prompts, sampler, seed, weights), len(parts[0]) if parts else 1)
    with policy.weights.still(weights):
        try:
            for part, real in steps:
                x0 = sample(part)
                if real:
                    yield part.tolist(), _pictures(policy, x0)
        finally:
            for part, _ in steps if policy.weights.collective else ():
                sample(part)


def _sampling(
    policy: Policy, prompts: Sequence[Prompt], sampler: Sampler, seed: int, weights: str
) -> Callable[[Tensor], Tensor]:
    """A function that samples the latents of images with these numbers [B]."""
    sampler, unique = bound_to(policy, sampler), list(dict.fromkeys(prompts))
    condition, number = policy.encode(unique), {prompt: k for k, prompt in enumerate(unique)}
    row = torch.tensor([number[prompt] for prompt in prompts])
    velocity = policy.under(weights, sampler.guidance)

    def sample(part: Tensor) -> Tensor:
        keys = tuple(("evaluation", seed, number) for number in part.tolist())
        with memory.explained(_size(policy, len(part))):
            return sampler(velocity, condition[row[part]], Noise(policy.latent_shape, keys, policy.device)).x0

    return sample


def _filled(policy: Policy, sample: Callable[[Tensor], Tensor], size: int) -> Callable[[Tensor], Tensor]:
    """The same function, with batches filled up to `size` (see process/filled.py)."""

    def sampled(part: Tensor) -> Tensor:
        whole, repeated = filled(policy, part, size)
        with repeated:
            return sample(whole)[: len(part)]

    return sampled


def _pictures(policy: Policy, x0: Tensor) -> Tensor:
    """The images of samples [B, ...], on the CPU.

    Raises:
        NotFinite: samples are NaN or infinite.
    """
    if not x0.isfinite().all():
        raise NotFinite(
            f"the samples of {policy.name} are NaN or infinite: its weights have diverged, or are too large "
            f"for {policy.precision}; try --precision float32"
        )
    with memory.explained(_size(policy, len(x0))):
        return policy.decode(x0).cpu()


def _size(policy: Policy, many: int) -> str:
    """What takes memory, and the options that reduce it."""
    medium = policy.medium
    more = f", or use {medium.savings}" if medium.savings else ""
    return (
        f"with {medium.about}, {many} {medium.noun} sampled at once: lower --batch (in training "
        f"--evaluation.batch){more}"
    )
