"""A number with everything that it depends on beside it: prompts, seeds, solver, steps, guidance, weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from PIL.Image import Image
from torch import Tensor

from . import rewards as reward_table
from .images import labelled_grid
from .models.policy import Policy
from .prompts import PromptSet
from .rewards import Explains, Metadata, Reward
from .rollout import Sampler
from .streams import Noise

Z95 = 1.959964


@dataclass(frozen=True)
class Evaluation:
    """What is measured, and how. Two numbers may be compared when these agree."""

    prompts: str = "scenes-held-out"
    """built-in prompt set, file, or data set (hf:owner/name); held-out:FILE for a twentieth of it"""
    rewards: tuple[str, ...] = ("scenes-strict", "balance")
    """scores to report; the first is the headline"""
    images: int = 1200
    """spread evenly over the categories of the prompts"""
    seed: int = 1234
    weights: Literal["policy", "ema"] = "policy"
    """`ema` is the running average of the policy"""
    batch: int = 200
    sampler: Sampler = field(default_factory=lambda: Sampler(grid="model"))

    def __post_init__(self) -> None:
        if self.images < 1 or self.batch < 1:
            raise ValueError(f"an evaluation needs at least 1 image and batch, not {self.images} and {self.batch}")
        if self.seed < 0:
            raise ValueError(f"the seed of an evaluation must not be negative, it is {self.seed}")


def interval(scores: Tensor, verdicts: bool = False) -> dict[str, float | int]:
    """Mean and 95 % interval of scores [n]: Wilson's for verdicts 0/1, the normal one otherwise.

    The kind of reward decides which: graded scores may happen to be all 0 or 1, and a single one bounds nothing.
    """
    n, mean = len(scores), scores.double().mean().item()
    if verdicts and ((scores == 0) | (scores == 1)).all():
        middle = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n * n)) / (1 + Z95**2 / n)
    else:
        middle = mean
        half = Z95 * scores.double().std().item() / math.sqrt(n) if n > 1 else math.inf
    return {"mean": mean, "low": middle - half, "high": middle + half, "n": n}


def draw(
    policy: Policy, texts: Sequence[str], sampler: Sampler, seed: int, weights: str = "policy", batch: int = 200
) -> Tensor:
    """One image per text, [N, 3, H, W] on the CPU; image k depends on (seed, k) and its text alone."""
    sampler, unique = sampler.bound(policy.times), list(dict.fromkeys(texts))
    condition = policy.encode(unique)
    row = torch.tensor([unique.index(text) for text in texts])
    velocity, images = policy.under(weights, sampler.guidance), []
    with policy.weights.still(weights):
        for start in range(0, len(texts), batch):
            part = row[start : start + batch]
            keys = tuple(("evaluation", seed, start + k) for k in range(len(part)))
            drawn = sampler(velocity, condition[part], Noise(policy.latent_shape, keys, policy.device))
            images.append(policy.decode(drawn.x0).cpu())
    return torch.cat(images)


def evaluate(
    policy: Policy, prompts: PromptSet, evaluation: Evaluation, rewards: Mapping[str, Reward] | None = None
) -> dict[str, Any]:
    """Scores overall and per category, with 95 % intervals, beside the settings that they were measured with.

    The intervals speak of other noise for these prompts (each prompt is drawn equally often), not of other prompts.
    """
    rewards = rewards or {name: reward_table.load([name]) for name in evaluation.rewards}
    chosen = prompts.spread(evaluation.images)
    texts = [prompts.texts[i] for i in chosen]
    categories = [prompts.categories[i] for i in chosen]
    sampler = evaluation.sampler.bound(policy.times)
    images = draw(policy, texts, sampler, evaluation.seed, evaluation.weights, evaluation.batch)
    scores = {}
    for name, reward in rewards.items():
        values = reward_table.score(name, reward, images, texts, prompts.about(chosen))
        verdicts = isinstance(reward, Explains)  # it can say what is wrong, so the others are right
        rows = {c: torch.tensor([own == c for own in categories]) for c in dict.fromkeys(categories)}
        scores[name] = {
            "overall": interval(values, verdicts),
            "categories": {c: interval(values[at], verdicts) for c, at in rows.items()},
        }
    return {
        "weights": evaluation.weights,
        "precision": policy.precision,
        "solver": sampler.solver,
        "steps": sampler.steps,
        **({"times": list(sampler.own)} if sampler.own else {"shift": sampler.shift}),
        "grid": sampler.grid,
        "guidance": None if sampler.guidance == 1 else sampler.guidance,
        "seed": evaluation.seed,
        "prompts": prompts.name,
        "images": len(texts),
        "scores": scores,
    }


def explain(reward: Reward, images: Tensor, texts: Sequence[str], metadata: Metadata = None) -> list[str | None]:
    """What a reward has to say of each image ('' where nothing is wrong); None where it cannot say."""
    return list(reward.explain(images, texts, metadata)) if isinstance(reward, Explains) else [None] * len(texts)


@dataclass(frozen=True)
class Evaluator:
    """Measures one policy, always in the same way."""

    policy: Policy
    evaluation: Evaluation
    prompts: PromptSet
    pictures: int = 24
    """in the sample grid"""

    def scores(self) -> dict[str, Any]:
        return evaluate(self.policy, self.prompts, self.evaluation)

    def grid(self) -> Image:
        """The same prompts and seeds each time, with the verdict of the first reward on each picture."""
        chosen = self.prompts.spread(self.pictures)
        texts = [self.prompts.texts[i] for i in chosen]
        how = self.evaluation
        images = draw(self.policy, texts, how.sampler, how.seed, how.weights, how.batch)
        marks = explain(reward_table.load(how.rewards[:1]), images, texts, self.prompts.about(chosen))
        return labelled_grid(images, texts, marks, columns=4)
