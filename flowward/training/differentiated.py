"""The gradient of a run's reward with respect to samples, for losses that ask for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import rewards
from ..algorithms.algorithm import Algorithm, differentiates, words
from ..process.flow import over
from ..process.policy import Condition, Policy, Wording
from ..prompts import Prompt, PromptSet
from ..rewards import Reward, RewardError

ROW = "prompt_number"
"""the tensor [N] of a condition that has the number of each row's prompt in its prompt set"""


def refuse(algorithm: Algorithm, policy: Policy, reward: Reward, prompts: PromptSet) -> None:
    """Raise ValueError if an algorithm differentiates the reward, and the reward or the model has no gradient."""
    if not differentiates(algorithm):
        return
    who = type(algorithm).__name__
    rewards.refuse_without(reward, who)
    if policy.weights.collective:
        raise ValueError(f"{who} needs passes that split weights do not have: leave out --shard")
    for text in words(algorithm):
        said = [text + prompt for prompt in prompts.texts]
        try:
            rewards.refuse(reward, said, prompts.about(range(len(prompts)), policy.medium.facts))
        except ValueError as error:
            raise ValueError(
                f"the contrast puts '{text.strip()}' before prompts, which needs a reward that reads any text: leave "
                f"the contrasts at none ({error})"
            ) from error


def tried(algorithm: Algorithm, policy: Policy, reward: Reward, prompts: PromptSet) -> None:
    """Differentiate the reward of one decoded noise, if the algorithm will, so that a run does not begin in vain.

    Raises:
        ValueError: the reward has no usable gradient, or the model cannot decode with one.
    """
    if not differentiates(algorithm):
        return
    x = torch.randn(1, *policy.latent_shape, generator=torch.Generator().manual_seed(0)).to(policy.device)
    about = prompts.about([0], policy.medium.facts)
    try:
        policy.pullback(x, lambda images: rewards.gradient(reward, images, prompts.texts[:1], about))
    except RewardError as error:
        raise ValueError(str(error)) from error


def numbered(condition: Condition, prompts: Sequence[Prompt], among: PromptSet) -> Condition:
    """The condition with the number of each row's prompt, which the reward needs in the loss."""
    device = next(iter(condition.tensors.values())).device
    numbers = torch.tensor([among.places[prompt] for prompt in prompts], device=device)
    return condition.beside({ROW: numbers})


@dataclass(frozen=True)
class RewardSlope:
    """d reward / d x0 through the decoder, as `Models.slope`."""

    policy: Policy
    reward: Reward
    prompts: PromptSet

    def __call__(self, x0: Tensor, condition: Condition, wording: Wording) -> tuple[Tensor, Tensor]:
        """Scores [B] and their gradients [B, ...]; raises RewardError if the reward fails."""
        numbers = condition.tensors[ROW].tolist()
        texts = [self.prompts.texts[number] for number in numbers]
        about = self.prompts.about(numbers, self.policy.medium.facts)

        def back(images: Tensor) -> tuple[Tensor, Tensor]:
            if not wording:
                return rewards.gradient(self.reward, images, texts, about)
            total, slope = images.new_zeros(len(images)), torch.zeros_like(images)
            for before, weight in wording.items():
                rows = weight.nonzero().flatten()
                some = rows.tolist()
                said, own = [before + texts[row] for row in some], [about[row] for row in some] if about else None
                scores, slopes = rewards.gradient(self.reward, images[rows], said, own)
                share = weight[rows].to(images)
                total[rows] += share * scores
                slope[rows] += over(share, slopes) * slopes
            return total, slope

        return self.policy.pullback(x0, back)
