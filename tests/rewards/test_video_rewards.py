"""Rewards of whole videos, held to closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
from PIL import Image
from torch import Tensor

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.videos.motion import Motion, SourceFrame
from flowward.rewards.videos.steady import Steady


def grey(*levels: float) -> Tensor:
    """A video [F, 3, 4, 6] whose frames have one brightness each."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 6)


def scored(reward: Any, *videos: Tensor, metadata: Any = None) -> list[float]:
    found: list[float] = reward(torch.stack(videos), ["a"] * len(videos), metadata).tolist()
    return found


def test_motion_is_the_mean_change_of_brightness() -> None:
    still, slow, fast = grey(0.5, 0.5, 0.5), grey(0.5, 0.51, 0.53), grey(0.0, 1.0, 0.0)
    assert scored(Motion(), still, slow, fast) == pytest.approx([0.0, 0.015 / 0.05, 1.0], abs=1e-5)
    assert scored(Motion(enough=1.0), still, slow, fast) == pytest.approx([0.0, 0.015, 1.0], abs=1e-5)
    assert scored(Motion(), grey(0.3)) == [0.0]  # one frame
    half = fast.clone()
    half[:, :, :2] = 0.5  # half of the pixels do not move
    assert scored(Motion(enough=1.0), half) == pytest.approx([0.5**0.5], abs=1e-5)


def test_a_moving_square_moves_whatever_its_way() -> None:
    """By hand: one column of 6 leaves and one comes, each step."""

    def at(place: int) -> Tensor:
        frame = torch.zeros(3, 4, 6)
        frame[:, :, place] = 1.0
        return frame

    right, left = torch.stack([at(0), at(1), at(2)]), torch.stack([at(5), at(4), at(3)])
    assert scored(Motion(enough=1.0), right, left) == pytest.approx([(2 / 6) ** 0.5] * 2, abs=1e-5)


def test_a_frame_is_compared_with_its_source(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 12, 3), 51, np.uint8)).save(tmp_path / "dark.png")  # 0.2, at another size
    about = [{"source": str(tmp_path / "dark.png")}] * 2
    videos = grey(0.2, 0.5), grey(1.0, 0.2)
    assert scored(SourceFrame(), *videos, metadata=about) == pytest.approx([1.0, 0.2], abs=1e-5)
    assert scored(SourceFrame(frame="last"), *videos, metadata=about) == pytest.approx([0.7, 1.0], abs=1e-5)
    with pytest.raises(ValueError, match="'a dog' has none"):
        rewards.refuse(SourceFrame(), ["a cat", "a dog"], [about[0], {}])
    with pytest.raises(ValueError, match="unknown frame 'middle'"):
        SourceFrame(frame="middle")  # type: ignore[arg-type]


def test_a_still_is_steady_and_other_videos_less(tmp_path: Path) -> None:
    tiny_clip.save(tmp_path)
    reward = Steady(model=str(tmp_path), processor=str(tmp_path), device="cpu")
    frames = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    one, other = frames[:1].expand(4, -1, -1, -1), frames
    still, moving = scored(reward, one, other)
    assert still == pytest.approx(1.0, abs=1e-5) and -1 <= moving < 1 - 1e-5
    vectors = reward._clip.images(frames, 4)
    by_hand = sum(float(vectors[k] @ vectors[k + 1]) for k in range(3)) / 3
    assert moving == pytest.approx(by_hand, abs=1e-5)
    assert scored(reward, other[:1]) == [1.0]
    with pytest.raises(RewardError, match=r"Steady needs videos of shape \[B, F, 3, H, W\], not \[4, 3, 32, 32\]"):
        reward(frames, ["a"] * 4)


@pytest.mark.parametrize("reward", [Motion(), SourceFrame()])
def test_images_are_no_videos(reward: Any) -> None:
    with pytest.raises(RewardError, match=r"scores videos of shape \[B, F, 3, H, W\], not \[2, 3, 4, 6\]"):
        reward(torch.zeros(2, 3, 4, 6), ["a", "b"], [{"source": "x.png"}] * 2)


def test_enough_is_positive() -> None:
    with pytest.raises(ValueError, match="enough must be a positive number"):
        Motion(enough=0.0)


def test_a_whole_video_is_scored_once_and_not_frame_by_frame() -> None:
    videos = torch.stack([grey(0.0, 1.0), grey(0.5, 0.5)])
    assert rewards.score("motion", rewards.load(["motion"]), videos, ["a", "b"], None, True).tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    ("name", "kind", "able"),
    [
        ("motion", "images", "videos"),
        ("brightness", "sounds", "images and videos"),
        ("loudness", "videos", "sounds"),
    ],
)
def test_a_reward_that_cannot_score_what_a_model_makes_is_refused_before_a_run(name: str, kind: str, able: str) -> None:
    with pytest.raises(ValueError, match=f"the reward {name} scores {able}, but this model makes {kind}"):
        rewards.refuse_kind(rewards.load([name]), kind)


def test_other_rewards_and_other_models_are_asked() -> None:
    rewards.refuse_kind(rewards.load(["brightness"]), "videos")  # frame by frame
    rewards.refuse_kind(rewards.load(["motion"]), "")  # a module of the user's
    rewards.refuse_kind(lambda images, prompts, metadata=None: images.sum(), "sounds")  # the user's own
