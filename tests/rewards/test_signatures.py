"""A reward may leave out the metadata; wherever it is called, it is called in the way that it can be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from judges import judged
from local_servers import served
from torch import Tensor, nn

from flowward import rewards
from flowward.evaluation.provenance import described
from flowward.rewards import Sum, score
from flowward.rewards.judges.judge import Judge
from flowward.rewards.scoring import Scoring
from flowward.rewards.service.remote import Remote
from flowward.rewards.service.server import Service

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
TEXTS = ["a", "a", "bb", "bb"]
ABOUT: list[Mapping[str, Any]] = [{"add": n} for n in range(4)]


def two(images: Tensor, prompts: Sequence[str]) -> Tensor:
    return images.mean((1, 2, 3)) + torch.tensor([float(len(prompt)) for prompt in prompts])


def three(images: Tensor, prompts: Sequence[str], metadata: Any) -> Tensor:
    return two(images, prompts) + torch.tensor([float(each["add"]) for each in metadata])


def by_name(images: Tensor, prompts: Sequence[str], *, metadata: Any = None) -> Tensor:
    return three(images, prompts, metadata)


def scaled(factor: float, images: Tensor, prompts: Sequence[str]) -> Tensor:
    return factor * two(images, prompts)


class Bound:
    def two(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return two(images, prompts)


class Network(nn.Module):
    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        return two(images, prompts)


PLAIN, ADDED = two(IMAGES, TEXTS), three(IMAGES, TEXTS, ABOUT)
WAYS: list[tuple[Any, Tensor]] = [
    (two, PLAIN),
    (three, ADDED),
    (by_name, ADDED),
    (partial(scaled, 2.0), 2 * PLAIN),
    (Bound().two, PLAIN),
    (Network(), PLAIN),
    (lambda *given: two(*given[:2]), PLAIN),
]


@pytest.mark.parametrize(("reward", "wanted"), WAYS)
def test_a_reward_is_called_with_what_it_takes(reward: Callable[..., Tensor], wanted: Tensor) -> None:
    rewards.refuse(reward, TEXTS, ABOUT)
    assert torch.equal(score("own", reward, IMAGES, TEXTS, ABOUT), wanted)
    both = Sum((("own", 1.0, reward), ("two", 0.5, two)))
    rewards.refuse(both, TEXTS, ABOUT)
    assert torch.allclose(score("both", both, IMAGES, TEXTS, ABOUT), wanted + 0.5 * PLAIN)
    with Scoring([("own", reward), ("three", three)], TEXTS, ABOUT, unit=2) as scoring:
        scoring.add(IMAGES)
        assert torch.equal(scoring.result(IMAGES), torch.stack([wanted, ADDED], 1))
    videos = IMAGES[:, None].expand(4, 2, 3, 6, 6)
    assert torch.allclose(score("own", reward, videos, TEXTS, ABOUT), wanted)


@pytest.mark.parametrize(("reward", "wanted"), WAYS[:3])
def test_so_does_a_server(reward: Callable[..., Tensor], wanted: Tensor) -> None:
    with served(Service("own", reward)) as at:
        assert torch.equal(score("far", Remote(at), IMAGES, TEXTS, ABOUT), wanted)


def test_judges_are_asked_either_way() -> None:
    with judged() as (at, _):
        judge = Judge(server=at)
        with_metadata = score("judge", judge, IMAGES, TEXTS, [{}] * 4)
        assert torch.equal(score("judge", judge, IMAGES, TEXTS), with_metadata)


def test_files_may_have_either(tmp_path: Any) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def bright(images, prompts):\n    return images.mean((1, 2, 3))\n"
        "def told(images, prompts, metadata):\n    return [each['add'] for each in metadata]\n"
    )
    loaded = rewards.load([f"{file}:bright", f"{file}:told=2"])
    rewards.refuse(loaded, TEXTS, ABOUT)
    wanted = IMAGES.mean((1, 2, 3)) + 2 * torch.arange(4)
    assert torch.allclose(score("sum", loaded, IMAGES, TEXTS, ABOUT), wanted)


def test_a_reward_without_a_module_is_a_reward() -> None:
    """As code that is run by `exec` makes it."""
    space: dict[str, Any] = {}
    exec("def bright(images, prompts):\n    return images.mean((1, 2, 3))", {"__builtins__": {}}, space)
    assert space["bright"].__module__ is None and described(space["bright"])["kind"].endswith(".bright")
    assert torch.equal(score("own", space["bright"], IMAGES, TEXTS), IMAGES.mean((1, 2, 3)))
