"""A reward of your own: score how much of an image is red, test it, and train with it for a few iterations.

python own_reward.py
flowward train --reward own_reward.py:Colour --reward-options own_reward.py:Colour.channel=2    # blue instead
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import flowward
from flowward.algorithms import AdvantageFlow


@dataclass
class Colour:
    """Mean of one colour channel minus the mean of the other two, in [-1, 1]."""

    channel: int = 0
    """0: red, 1: green, 2: blue"""

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        """Scores [B] of images [B, 3, H, W] in [0, 1]; higher is better."""
        means = images.mean((2, 3))  # [B, 3]
        return 1.5 * means[:, self.channel] - means.sum(1) / 2


if __name__ == "__main__":
    images = torch.zeros(2, 3, 8, 8)
    images[0, 0] = 1  # a red image and a black one
    assert Colour()(images, ["a", "b"]).tolist() == [1.0, 0.0]

    run = flowward.Run(iterations=10, images_per_update=96, group_size=12, microbatch=96, learning_rate=3e-4)
    prompts = flowward.prompts.load("scenes")
    for step in flowward.train(AdvantageFlow(), flowward.load("scenes"), Colour(), prompts, run):
        print(f"{step.index:3d}  reward {step.metrics['reward']:.3f}", *step.health)
