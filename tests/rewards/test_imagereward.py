"""ImageReward on a tiny checkpoint of its own layout, held to the same network in plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_blip
import torch
from torch import Tensor

from flowward import rewards
from flowward.rewards.images.imagereward import PIXELS, ImageReward
from flowward.rewards.network import weights

PROMPTS = ["a cat", "two birds under a tree", "a cat", "sea " * 50]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_blip.save(tmp_path_factory.mktemp("blip"))


@pytest.fixture(scope="module")
def images() -> Tensor:
    coarse = torch.rand(len(PROMPTS), 3, 4, 5, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, (40, 56))


@torch.no_grad()
def by_hand(images: Tensor) -> Tensor:
    """One image and prompt at a time, without padding."""
    tokenizer, state = tiny_blip.tokenizer(), tiny_blip.state()
    tokens = [tokenizer([p], truncation=True, max_length=35, return_tensors="pt").input_ids for p in PROMPTS]
    return torch.cat([tiny_blip.score(state, PIXELS(x[None]), read) for x, read in zip(images, tokens, strict=True)])


def test_scores_are_those_of_the_network_in_plain_torch(folder: str, images: Tensor) -> None:
    reward = rewards.load(["imagereward"], [f"imagereward.model={folder}", f"imagereward.tokenizer={folder}"])
    wanted = by_hand(images)
    assert wanted.std() > 0.02 and (wanted[0] - wanted[2]).abs() > 5e-3  # prompts and images both matter
    torch.testing.assert_close(reward(images, PROMPTS), wanted, atol=1e-5, rtol=0)


def test_neither_batch_nor_order_nor_precision_matters(folder: str, images: Tensor) -> None:
    how = {"model": folder, "tokenizer": folder}
    scores, order = ImageReward(**how)(images, PROMPTS), [2, 0, 3, 1]
    torch.testing.assert_close(ImageReward(**how, batch=3)(images, PROMPTS), scores, atol=1e-5, rtol=0)
    mixed = ImageReward(**how)(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(mixed, scores[order], atol=1e-5, rtol=0)
    half = ImageReward(**how, dtype="bfloat16")(images, PROMPTS)
    torch.testing.assert_close(half, scores, atol=0.1, rtol=0)
    assert half.dtype == torch.float32 and not torch.equal(half, scores)


def test_other_checkpoints_are_refused(folder: str, tmp_path: Path) -> None:
    state = weights(Path(folder) / "ImageReward.pt")

    def sentence() -> str:
        torch.save(state, tmp_path / "ImageReward.pt")
        with pytest.raises(ValueError) as error:
            ImageReward(str(tmp_path), tokenizer=folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    del state["blip.visual_encoder.blocks.1.norm1.bias"]
    assert "is not an ImageReward checkpoint: " in sentence() and "layer_norm1.bias" in sentence()
    state["blip.visual_encoder.blocks.1.norm1.bias"] = torch.ones(3)
    assert "size mismatch" in sentence()
    del state["blip.text_encoder.embeddings.word_embeddings.weight"]
    assert "is not an ImageReward checkpoint" in sentence()
    with pytest.raises(ValueError, match=r"has no file other\.pt"):
        ImageReward(folder, file="other.pt", tokenizer=folder)
    with pytest.raises(ValueError, match="there is no folder no/where/at/all"):
        ImageReward(folder, tokenizer="no/where/at/all")
