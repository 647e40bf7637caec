"""Rewards of the CLIP kind, on tiny models of the same classes: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import tiny_clip
import torch
import transformers
from PIL import Image
from tiny_clip import PROMPTS, made, unit
from torch import Tensor, nn

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.images.aesthetic import Aesthetic
from flowward.rewards.images.clip import CLIPScore, PickScore
from flowward.rewards.images.diversity import Diversity, distances
from flowward.rewards.network import Embedded


@pytest.fixture(scope="module")
def images() -> Tensor:
    return tiny_clip.images()


def pil(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray((image * 255).round().byte().permute(1, 2, 0).numpy()) for image in images]


# --- scores


@torch.no_grad()
def by_hand(clip: str, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Embeddings with the model's own processor, one image and one prompt at a time, without padding."""
    network = transformers.CLIPModel.from_pretrained(clip).eval()
    tokenizer, processor = tiny_clip.tokenizer(), transformers.AutoImageProcessor.from_pretrained(clip)
    pixels = [processor(image, return_tensors="pt").pixel_values for image in pil(images)]
    ids = [tokenizer([p], truncation=True, max_length=tiny_clip.LENGTH, return_tensors="pt").input_ids for p in prompts]
    return (
        torch.cat([unit(network.get_image_features(pixel_values=each)) for each in pixels]),
        torch.cat([unit(network.get_text_features(input_ids=each)) for each in ids]),
    )


def test_scores_are_what_the_model_and_its_processor_say(clip: str, clip_head: str, images: Tensor) -> None:
    seen, read = by_hand(clip, images, PROMPTS)
    cosine = (seen * read).sum(-1)
    assert cosine.std() > 0.05  # otherwise nothing would be compared
    close = {"atol": 2e-3, "rtol": 0.0}  # the processor rounds to 8 bits
    torch.testing.assert_close(made("clipscore", clip, clip_head)(images, PROMPTS), cosine, **close)
    floored = made("clipscore", clip, clip_head, factor=2.5, floor="true")(images, PROMPTS)
    torch.testing.assert_close(floored, 2.5 * cosine.clamp(min=0), atol=5e-3, rtol=0)
    assert (floored == 0).any() and (floored > 0).any()
    torch.testing.assert_close(made("pickscore", clip, clip_head)(images, PROMPTS), 100 * cosine, atol=0.2, rtol=0)
    torch.testing.assert_close(
        made("pickscore", clip, clip_head, divisor=26)(images, PROMPTS), 100 / 26 * cosine, atol=0.01, rtol=0
    )
    x = seen
    state = torch.load(clip_head, weights_only=True)
    for number in (0, 2, 4):
        x = x @ state[f"layers.{number}.weight"].T + state[f"layers.{number}.bias"]
    torch.testing.assert_close(made("aesthetic", clip, clip_head)(images, PROMPTS), x[:, 0], atol=0.02, rtol=0)
    apart = 1 - (seen[0] * seen[2]).sum()
    wanted = torch.stack([apart, torch.tensor(0.0), apart, torch.tensor(0.0), torch.tensor(0.0)])
    torch.testing.assert_close(made("diversity", clip, clip_head)(images, PROMPTS), wanted, **close)


def test_the_model_itself_agrees(clip: str, images: Tensor) -> None:
    """logits_per_image of the whole model is PickScore: its own scale, and its own way to normalise."""
    reward = PickScore(clip, processor=clip)
    network = transformers.CLIPModel.from_pretrained(clip).eval()
    tokens = tiny_clip.tokenizer()(PROMPTS, padding=True, truncation=True, max_length=24, return_tensors="pt")
    with torch.no_grad():
        logits = network(pixel_values=reward._clip.preprocess(images), input_ids=tokens.input_ids).logits_per_image
    torch.testing.assert_close(reward(images, PROMPTS), logits.diagonal(), atol=1e-4, rtol=0)


NAMES = ["pickscore", "clipscore", "aesthetic", "diversity"]


@pytest.mark.parametrize("name", NAMES)
def test_neither_batch_nor_order_nor_precision_matters(name: str, clip: str, clip_head: str, images: Tensor) -> None:
    scores = made(name, clip, clip_head)(images, PROMPTS)
    size = max(0.2, float(scores.abs().max()))
    for batch in (1, 2, 5):
        other = made(name, clip, clip_head, batch=batch)(images, PROMPTS)
        torch.testing.assert_close(other, scores, atol=1e-5 * size, rtol=0)
    order = [3, 0, 4, 2, 1]
    other = made(name, clip, clip_head)(images[order], [PROMPTS[i] for i in order])
    torch.testing.assert_close(other, scores[order], atol=1e-5 * size, rtol=0)
    torch.testing.assert_close(made(name, clip, clip_head)(images.double(), PROMPTS), scores, atol=1e-5 * size, rtol=0)
    for dtype, loss in (("float16", 1e-2), ("bfloat16", 5e-2)):
        other = made(name, clip, clip_head, dtype=dtype)(images, PROMPTS)
        assert other.dtype == torch.float32
        torch.testing.assert_close(other, scores, atol=loss * size, rtol=0)
        assert not torch.equal(other, scores)


@pytest.mark.parametrize("name", NAMES)
def test_scores_are_held_to_their_word(name: str, clip: str, clip_head: str, images: Tensor) -> None:
    """Frames of a video are averaged by `score`, or compared in time by diversity; NaN is found out."""
    reward = made(name, clip, clip_head)
    video = torch.stack([images, images.flip(-1)], 1)
    scores = rewards.score(name, reward, video, PROMPTS)
    frames = torch.stack([rewards.score(name, reward, video[:, i], PROMPTS) for i in range(2)])
    torch.testing.assert_close(scores, frames.mean(0), atol=1e-4, rtol=1e-4)
    broken = images.clone()
    broken[1, 0, 20, 28] = torch.nan
    if name != "diversity":  # there an image alone with its prompt scores 0, whatever it is
        with pytest.raises(RewardError, match=f"reward '{name}' returned nan for 1 of 5 .* 'two birds'"):
            rewards.score(name, reward, broken, PROMPTS)
    with pytest.raises(RewardError, match=r"needs images of shape \[B, 3, H, W\], not \[5, 1, 40, 56\]"):
        reward(images[:, :1], PROMPTS)
    with pytest.raises(RewardError, match="one prompt per image, not 4 for 5 images"):
        reward(images, PROMPTS[:4])


# --- prompts


def test_a_prompt_is_embedded_once(clip: str, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    reward, prompts = CLIPScore(clip, batch=2), ["once", "twice", "once", "thrice", "never before"]
    read: list[int] = []
    inner = reward._clip.resident.network.get_text_features

    def counted(input_ids: Tensor) -> Any:
        read.append(len(input_ids))
        return inner(input_ids=input_ids)

    monkeypatch.setattr(reward._clip.resident.network, "get_text_features", counted)
    first = reward(images, prompts)
    assert read == [2, 2]  # four prompts, in batches of two
    assert torch.equal(reward(images, prompts), first) and read == [2, 2]
    reward(images[:1], ["something new"])
    assert read == [2, 2, 1]


def test_what_is_remembered_is_bounded() -> None:
    asked: list[str] = []

    def embed(prompts: list[str], batch: int) -> Tensor:
        asked.extend(prompts)
        return torch.tensor([[float(prompt)] for prompt in prompts])

    embedded = Embedded(embed, bound=3)
    assert embedded(["1", "2", "3", "4", "5", "1"], 2).flatten().tolist() == [1, 2, 3, 4, 5, 1]
    assert embedded(["5", "4", "3"], 2).flatten().tolist() == [5, 4, 3] and asked == ["1", "2", "3", "4", "5"]
    assert embedded(["1"], 2).item() == 1 and asked[5:] == ["1"]


def test_a_long_prompt_is_cut(clip: str, images: Tensor) -> None:
    reward, long = CLIPScore(clip), "abcdefghijklmnopqrstuvwxyz"
    scores = [reward(images[:1], [text]).item() for text in (long, long + " and more", long[:20])]
    assert scores[0] == scores[1] != scores[2]


# --- where a network is


def test_offloaded_weights_are_on_the_device_only_while_used(
    clip: str, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a second device the moves are recorded; the test below has one where there is one."""
    moves: list[Any] = []
    reward = CLIPScore(clip, offload=True)
    resident = reward._clip.resident
    monkeypatch.setattr(resident.network, "to", lambda where: moves.append(where))
    reward(images, PROMPTS)
    assert moves == ["cpu", "cpu"] * 2  # there and back: for the images, and for the prompts
    reward(images, PROMPTS)
    assert len(moves) == 6  # no prompt is new
    with pytest.raises(KeyError), resident.at_work():
        raise KeyError
    assert len(moves) == 8  # back, whatever happens
    moves.clear()
    assert CLIPScore(clip)(images, PROMPTS).tolist() == reward(images, PROMPTS).tolist() and len(moves) == 2


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same(clip: str, clip_head: str, images: Tensor) -> None:
    for name in NAMES:
        wanted = made(name, clip, clip_head, device="cpu")(images, PROMPTS)
        for how in ({"dtype": "float32"}, {}, {"offload": "true"}):
            reward = made(name, clip, clip_head, **how)
            scores = reward(images, PROMPTS)
            torch.testing.assert_close(scores, wanted, atol=5e-3 * float(wanted.abs().max()), rtol=0)
            home = next(reward._clip.resident.network.parameters()).device.type
            assert home == ("cpu" if how == {"offload": "true"} else "cuda")


def test_weights_are_held_once(clip: str, clip_head: str) -> None:
    score, distance = CLIPScore(clip), Diversity(clip)
    assert score._clip is distance._clip is Aesthetic(clip, head=clip_head)._clip
    assert CLIPScore(clip, dtype="bfloat16")._clip is not score._clip
    assert CLIPScore(clip, batch=3)._clip is score._clip


def test_a_full_device_is_a_sentence(clip: str, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    reward = CLIPScore(clip)

    def full(pixel_values: Tensor) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reward._clip.resident.network, "get_image_features", full)
    with pytest.raises(RewardError, match="CLIPModel does not fit into the memory of cpu; lower the reward's batch"):
        reward(images, PROMPTS)


def test_a_graph_is_kept_for_images_alone(clip: str, images: Tensor) -> None:
    """Scores of plain images have none; those of images that require a gradient lead to these, and to no weights."""
    reward = CLIPScore(clip)
    scores = reward(images.clone(), PROMPTS)
    assert not scores.requires_grad
    scores += 1  # and what comes back may be changed
    asked = images.clone().requires_grad_()
    reward(asked, PROMPTS).sum().backward()
    assert asked.grad is not None and asked.grad.abs().sum() > 0
    assert not any(weight.requires_grad for weight in reward._clip.resident.network.parameters())


# --- diversity


def test_distances_by_hand() -> None:
    """Two at a right angle, one opposite to the first: (1 + 2) / 2, (1 + 1) / 2, (2 + 1) / 2; another is alone."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.6, 0.8]])
    assert distances(vectors, ["a", "a", "a", "b"]).tolist() == pytest.approx([1.5, 1.0, 1.5, 0.0])
    assert distances(vectors[[0, 0, 0]], ["a"] * 3).tolist() == pytest.approx([0, 0, 0], abs=1e-7)


def test_distances_are_the_mean_of_pairs() -> None:
    vectors = nn.functional.normalize(torch.randn(12, 7, generator=torch.Generator().manual_seed(3)), dim=-1)
    groups = ["a", "b", "a", "c", "a", "b", "a", "a", "b", "d", "d", "a"]
    for i, group in enumerate(groups):
        others = [j for j, other in enumerate(groups) if other == group and j != i]
        wanted = np.mean([1 - float(vectors[i] @ vectors[j]) for j in others]) if others else 0.0
        assert distances(vectors, groups)[i].item() == pytest.approx(wanted, abs=1e-6)
