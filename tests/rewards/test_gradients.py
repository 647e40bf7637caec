"""Gradients of rewards against finite differences, their sums, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import tiny_blip
import tiny_clip
import tiny_open_clip
import torch
from tiny_clip import PROMPTS, made
from torch import Tensor

from flowward import rewards
from flowward.prompts import scenes
from flowward.rewards import RewardError, Sum, differentiable, gradient, has_gradient, refuse_without
from flowward.rewards.images.hps import HPSv2
from flowward.rewards.images.imagereward import ImageReward


@differentiable
def bright(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.square().mean((1, 2, 3))


def along(reward: Any, images: Tensor, prompts: Sequence[str], step: float) -> tuple[Tensor, Tensor]:
    """The derivative of each score along the gradient, and the same by central differences."""
    scores, slope = gradient(reward, images, prompts)
    assert scores.shape == (len(images),) and slope.shape == images.shape
    assert torch.allclose(scores, reward(images, list(prompts)).float(), atol=1e-4)
    way = slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    ahead, behind = (reward(images + sign * step * way, list(prompts)).double() for sign in (1, -1))
    return (slope * way).flatten(1).sum(1).double(), (ahead - behind) / (2 * step)


@pytest.mark.parametrize("name", ["pickscore", "clipscore", "aesthetic"])
def test_network_rewards_have_the_gradient_of_finite_differences(clip: str, clip_head: str, name: str) -> None:
    reward = made(name, clip, clip_head, batch=2)
    images = 0.25 + 0.5 * tiny_clip.images()  # away from 0 and 1, where preprocessing clamps
    found, expected = along(reward, images, PROMPTS, 2e-3)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-4)
    assert (found > 0).all()


def test_hpsv2_and_imagereward_have_the_gradient_of_finite_differences(clip: str, tmp_path: Path) -> None:
    torch.save(tiny_open_clip.network("gelu").state_dict(), tmp_path / "weights.pt")
    blip = tiny_blip.save(tmp_path)
    for reward in (
        HPSv2(str(tmp_path / "weights.pt"), processor=clip, batch=2),
        ImageReward(model=blip, tokenizer=blip, batch=2),
    ):
        found, expected = along(reward, 0.25 + 0.5 * tiny_clip.images(), PROMPTS, 2e-3)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-4)
        assert (found > 0).all()


def test_the_scenes_network_has_the_gradient_of_finite_differences() -> None:
    reward = rewards.load("scenes-net")
    images = 0.25 + 0.5 * torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    texts = [*scenes.split(True)[:2], "a ring left of a cross", "two circles"]
    found, expected = along(reward, images, texts, 3e-3)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=1e-5)
    assert ((reward(images, texts) >= 0) & (reward(images, texts) <= 1)).all()


def test_a_weighted_sum_adds_up_gradients() -> None:
    images = torch.rand(3, 3, 4, 4)
    double = Sum((("a", 2.0, bright), ("b", -0.5, bright)))
    scores, slope = gradient(double, images, ["", "", ""])
    torch.testing.assert_close(scores, 1.5 * bright(images, []))
    torch.testing.assert_close(slope, 1.5 * 2 * images / 48)


def test_images_that_are_scored_stay_without_a_graph() -> None:
    images = torch.rand(2, 3, 4, 4)
    _, slope = gradient(bright, images, ["", ""])
    assert not images.requires_grad and not slope.requires_grad
    with torch.inference_mode():
        assert gradient(bright, torch.rand(2, 3, 4, 4), ["", ""])[1].abs().sum() > 0


def test_a_reward_without_gradient_is_named() -> None:
    both = rewards.load(["scenes-net=0.5", "scenes-strict"])
    assert has_gradient(rewards.load("scenes-net")) and not has_gradient(both)
    with pytest.raises(ValueError, match="DRaFT needs the gradient of the reward, and reward 'scenes-strict' has none"):
        refuse_without(both, "DRaFT")
    with pytest.raises(ValueError, match=r"SRPO needs the gradient of the reward, and reward 'jpeg-compress.*has none"):
        refuse_without(rewards.load("jpeg-compressibility"), "SRPO")


class Wrong:
    """A reward whose gradient can be anything."""

    def __init__(self, found: Any):
        self.found = found

    def __call__(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))

    def gradient(self, images: Tensor, prompts: Sequence[str]) -> Any:
        return self.found(images)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (lambda x: (x.mean((1, 2, 3)), x[:1]), r"must return slopes of shape \[2, 3, 4, 4\], not \[1, 3, 4, 4\]"),
        (lambda x: (x.mean(), x), r"must return scores of shape \[2\], not \[\]"),
        (
            lambda x: (x.mean((1, 2, 3)), x / 0),
            "slopes that are NaN or infinite for 2 of 2 images, the first for.*'sun'",
        ),
        (lambda x: 1 / 0, "gradient of reward 'Wrong' raised ZeroDivisionError"),
    ],
)
def test_bad_gradients_are_told_in_a_sentence(found: Any, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        gradient(Wrong(found), torch.rand(2, 3, 4, 4) + 0.1, ["sun", "sea"])


def test_a_function_that_leaves_torch_says_so() -> None:
    cut = differentiable(lambda images, prompts: images.detach().mean((1, 2, 3)))
    with pytest.raises(RewardError, match="no graph that leads to the images"):
        gradient(cut, torch.rand(2, 3, 4, 4), ["", ""])
