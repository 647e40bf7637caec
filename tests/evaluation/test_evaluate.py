"""Intervals that belong to the kind of reward, and images that are drawn once, whatever the batch."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import models, prompts, rewards
from flowward.evaluation import provenance
from flowward.evaluation.code_hashes import CODE, without_code
from flowward.evaluation.drawing import at_once
from flowward.evaluation.evaluate import (
    Evaluation,
    Evaluator,
    draw,
    evaluate,
    explain,
    interval,
    load_rewards,
    measure,
    settings,
)
from flowward.evaluation.images import thumbnails
from flowward.process import medium
from flowward.process.rollout import Sampler
from flowward.prompts import PromptSet

# Intervals belong to the kind of reward, not to the scores that it happened to give


def test_verdicts_have_wilsons_interval() -> None:
    found = interval(torch.tensor([1.0] * 7 + [0.0] * 3), verdicts=True)
    assert found["mean"] == pytest.approx(0.7)
    assert (found["low"], found["high"]) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    none, one = interval(torch.zeros(6), verdicts=True), interval(torch.ones(1), verdicts=True)
    assert (none["low"], none["high"]) == pytest.approx((0, 0.3903), abs=1e-4)
    assert (one["low"], one["high"]) == pytest.approx((0.2065, 1), abs=1e-4)


def test_other_scores_have_the_normal_one() -> None:
    found = interval(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert (found["low"], found["high"]) == pytest.approx((1.5 - half, 1.5 + half))
    nothing = interval(torch.zeros(6))  # not [0, 0.39]: nobody said that they are verdicts
    assert (nothing["mean"], nothing["low"], nothing["high"]) == (0, 0, 0)


def test_a_single_score_bounds_nothing() -> None:
    assert interval(torch.tensor([0.4])) == {"mean": pytest.approx(0.4), "low": None, "high": None, "n": 1}


class Black:
    def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.zeros(len(images))


class Wrong(Black):
    def explain(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> list[str]:
        return ["it is not black"] * len(images)


def test_a_video_is_right_where_all_its_frames_are() -> None:
    """The first frame that is not says why; a score of 1 and no complaint go together."""

    class Dark(Black):
        def explain(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> list[str]:
            assert images.ndim == 4
            return [f"bright {m:.1f}" if m > 0.15 else "" for m in images.mean((1, 2, 3)).tolist()]

    levels = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.5, 0.9]])
    videos = levels.view(2, 3, 1, 1, 1).expand(-1, -1, 3, 4, 4)
    assert explain(Dark(), videos, ["a", "b"]) == ["", "bright 0.5"]
    assert explain(Black(), videos, ["a", "b"]) == [None, None]


def test_an_explanation_that_is_none_is_told_in_a_sentence() -> None:
    class Fails(Black):
        def __init__(self, said: Any):
            self.said = said

        def explain(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> list[str]:
            return self.said["why"]  # type: ignore[no-any-return]

    images = torch.zeros(2, 3, 4, 4)
    for said in ({"why": ["a"]}, {"why": [None, "a"]}):
        with pytest.raises(rewards.RewardError, match="must return one text for each of 2 images"):
            explain(Fails(said), images, ["a", "b"])
    with pytest.raises(rewards.RewardError, match="cannot explain its scores: KeyError: 'why'"):
        explain(Fails({}), images, ["a", "b"])


def test_a_reward_that_says_what_is_wrong_gives_verdicts(tiny: str) -> None:
    how = Evaluation(images=6, sampler=Sampler(1))
    found = evaluate(
        models.load(tiny, precision="float32"), prompts.load("scenes"), how, {"black": Black(), "wrong": Wrong()}
    )["scores"]
    assert found["black"]["overall"]["high"] == 0
    assert found["wrong"]["overall"]["high"] == pytest.approx(0.39, abs=0.01)
    assert found["wrong"]["categories"]["colors"]["high"] == pytest.approx(0.79, abs=0.01)


def test_graded_scores_are_no_verdicts_even_with_an_explanation(tiny: str) -> None:
    class Half(Wrong):
        def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
            return torch.full((len(images),), 0.5)

    how = Evaluation(images=6, sampler=Sampler(1))
    found = measure(
        models.load(tiny, precision="float32"), prompts.load("scenes"), how, {"half": Half(), "wrong": Wrong()}
    )
    assert found.verdicts == {"wrong"}


@dataclass
class Sized:
    model: str = "small"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._network = object()

    def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return images.mean((1, 2, 3))


def test_everything_that_a_number_depends_on_is_beside_it(tiny: str) -> None:
    policy, texts = models.load(tiny, precision="float32"), prompts.load("scenes")
    how = Evaluation(images=6, sampler=Sampler(2, solver="sa"), guard=("sized",))
    said = settings(policy, texts, how, {"balance": rewards.make("balance"), "sized": Sized("large")})
    own = said["rewards"]["sized"]
    assert without_code(own) == {"kind": f"{__name__}.Sized", "model": "large", "device": "cpu"} and CODE in own
    assert said["rewards"]["balance"] == {"kind": "flowward.rewards.scenes.Balance"}
    assert said["tau"] == 0.4 and said["image_size"] == [32, 32] and said["guard"] == ["sized"]
    assert said["model"]["name"] == tiny and said["model"]["base"] == policy.identity["base"]
    assert set(said["versions"]) == {"flowward", "torch", "diffusers", "transformers"}
    assert json.loads(json.dumps(said)) == said
    function = provenance.described(lambda images, texts, metadata=None: images)
    assert "<lambda>" in function["kind"] and "0x" not in function["kind"]


def test_the_hash_is_of_the_prompts() -> None:
    one = PromptSet("x", ("a", "b"), ("all", "all"))
    assert provenance.hash_of(one) == provenance.hash_of(replace(one, name="y"))
    others = [replace(one, texts=("b", "a")), replace(one, texts=("a", "c")), replace(one, metadata=({"n": 1}, {}))]
    assert len({provenance.hash_of(each) for each in [one, *others]}) == 4


# Drawing


def test_images_are_drawn_once_and_in_any_batch_the_same(tiny: str) -> None:
    policy, texts = models.load(tiny, precision="float32"), prompts.load("scenes")
    seen: list[int] = []

    def bright(images: Tensor, own: Sequence[str], metadata: Any = None) -> Tensor:
        seen.append(len(images))
        return images.mean((1, 2, 3))

    def length(images: Tensor, own: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([float(len(text)) for text in own])

    found = []
    for batch in (7, 3, 100):
        how = Evaluation(images=7, batch=batch, sampler=Sampler(2))
        found.append(measure(policy, texts, how, {"bright": bright, "length": length}, pictures=True))
    assert seen == [7, 3, 3, 1, 7]
    for one, other in pairwise(found):
        torch.testing.assert_close(one.scores["bright"], other.scores["bright"], rtol=0, atol=1e-5)
        assert one.texts == other.texts and len(one.pictures) == 7
    for one in found:
        assert one.scores["length"].tolist() == [len(text) for text in one.texts]
    images = draw(policy, found[0].texts, Sampler(2), how.seed)
    torch.testing.assert_close(images.mean((1, 2, 3)), found[0].scores["bright"], rtol=0, atol=1e-5)
    assert list(found[0].pictures) == thumbnails(images)


def test_metadata_goes_with_its_prompt_through_batches(tiny: str) -> None:
    world = prompts.load("scenes")
    texts = replace(world, metadata=tuple({"text": text} for text in world.texts))

    def agrees(images: Tensor, own: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.tensor([float(about["text"] == text) for about, text in zip(metadata, own, strict=True)])

    how = Evaluation(images=7, batch=2, sampler=Sampler(1))
    assert (
        measure(models.load(tiny, precision="float32"), texts, how, {"agrees": agrees}).scores["agrees"].tolist()
        == [1] * 7
    )


def test_as_many_images_of_every_prompt() -> None:
    texts = PromptSet("x", ("a", "b", "c"), ("one", "one", "two"))
    assert Evaluation(images_per_prompt=2).chosen(texts) == [0, 0, 1, 1, 2, 2]
    assert Evaluation(images=4).chosen(texts) == texts.spread(4)
    with pytest.raises(ValueError, match="images_per_prompt must be between 1 and 1,000,000, not 0"):
        Evaluation(images_per_prompt=0)


def test_rewards_take_their_options() -> None:
    rewards.REWARDS["sized"] = Sized
    try:
        found = load_rewards(["balance", "sized"], ["sized.model=large"])
        assert found["sized"] == Sized("large")
        found = load_rewards(["sized=0.5", "balance"], ["sized.model=large"])
        assert [each for _, _, each in rewards.terms(found["sized=0.5"])] == [Sized("large")]
        with pytest.raises(ValueError, match="options for reward 'other', but it is not used"):
            load_rewards(["balance"], ["other.model=large"])
        with pytest.raises(ValueError, match="is not a reward option"):
            load_rewards(["balance"], ["large"])
    finally:
        del rewards.REWARDS["sized"]
    with pytest.raises(ValueError, match="name at least one reward"):
        load_rewards([])


def test_an_evaluator_loads_its_rewards_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[int] = []
    monkeypatch.setitem(rewards.REWARDS, "counted", lambda: made_of.append(1) or Black())
    how = Evaluation(rewards=("counted",), guard=("balance",), images=6, sampler=Sampler(1))
    one = Evaluator(models.load(tiny, precision="float32"), how, prompts.load("scenes"), pictures=2)
    assert set(one.scores()["scores"]) == {"counted", "balance"}
    one.scores(), one.grid()
    assert made_of == [1]


@pytest.mark.parametrize(
    ("size", "shape", "images"),
    [((32, 32), (16, 4, 4), 200), ((512, 512), (16, 64, 64), 8), ((2048, 1024), (16, 256, 128), 1),
     ((512, 256), (16, 9, 64, 32), 1), ((4096, 4096), (16, 512, 512), 1)],
)  # fmt: skip
def test_what_is_drawn_at_once_is_two_megapixels(size: tuple[int, int], shape: tuple[int, ...], images: int) -> None:
    policy: Any = SimpleNamespace(medium=medium.images(*size, shape[1] if len(shape) == 4 else None))
    assert at_once(policy) == images
