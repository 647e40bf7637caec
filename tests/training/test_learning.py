"""Training raises a reward that is easy to raise, and with the advantage turned round it does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import models, prompts
from flowward.algorithms import AdvantageFlow
from flowward.evaluation.evaluate import draw
from flowward.learning.credit import CentredRMS
from flowward.process.rollout import Sampler
from flowward.training.run import Run
from flowward.training.trainer import Trainer

PROMPTS = prompts.of("four", ["a circle", "a red square", "two rings", "a cross above a ring"])
BUDGET = Run(images_per_update=32, group_size=8, microbatch=32)
ITERATIONS = 20


def bright(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.mean((1, 2, 3))


def reddish(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """Closeness of the mean colour to a target."""
    return -(images.mean((2, 3)) - torch.tensor([0.5, 0.44, 0.42])).square().sum(1)


@dataclass(frozen=True)
class TurnedRound:
    """A planted bug: bad samples are called good."""

    right: CentredRMS = field(default_factory=CentredRMS)
    least: float = -1.0

    def __call__(self, rewards: Tensor, group: Tensor) -> Tensor:
        return -self.right(rewards, group)


def rise(tiny: str, algorithm: AdvantageFlow, reward: Any = bright, rank: int | None = None) -> float:
    """Of the mean reward from before to after training, in standard errors; same prompts and noise."""
    policy = models.load(tiny, rank, "float32")
    run = replace(BUDGET, learning_rate=1e-3 if rank is None else 3e-2)  # adapters start at zero and need more
    trainer = Trainer(replace(algorithm, rollout=Sampler(3)), policy, reward, PROMPTS, run)
    texts = [PROMPTS.texts[k % 4] for k in range(96)]

    def measured() -> Tensor:
        return reward(draw(policy, texts, Sampler(3), seed=1), texts)

    before = measured()
    for _ in range(ITERATIONS):
        trainer.step()
    after = measured()
    error = ((before.var() + after.var()) / len(texts)).sqrt()
    return ((after.mean() - before.mean()) / error).item()


@pytest.mark.parametrize("gamma", ["1-A", 1.1])
def test_the_reward_rises(tiny: str, gamma: Any) -> None:
    assert rise(tiny, AdvantageFlow(gamma=gamma)) > 4


def test_the_reward_rises_with_lora(tiny: str) -> None:
    assert rise(tiny, AdvantageFlow(), rank=8) > 4


def test_another_reward_rises(tiny: str) -> None:
    assert rise(tiny, AdvantageFlow(), reddish) > 4


@pytest.mark.parametrize("gamma", ["1-A", 1.1])
def test_with_the_advantage_turned_round_it_falls(tiny: str, gamma: Any) -> None:
    assert rise(tiny, AdvantageFlow(gamma=gamma, credit=TurnedRound())) < -4  # type: ignore[arg-type]
