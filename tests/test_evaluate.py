"""Numbers with everything that they depend on; models compared image by image, and only where that is fair."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import unescape
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_pipelines
import torch
from torch import Tensor

from flowward import comparison, evaluation_page, export, exported, measurement, models, prompts, provenance, rewards
from flowward.cli import main
from flowward.commands.options import policy_of
from flowward.comparison import Difference, differences
from flowward.evaluate import Evaluation, Evaluator, draw, evaluate, explain, interval, load_rewards, measure, settings
from flowward.health import Change, hacked
from flowward.images import thumbnails
from flowward.measurement import Measurement
from flowward.models.loading import Loading
from flowward.prompts import PromptSet
from flowward.rollout import Sampler
from flowward.statistics import mcnemar

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
        with pytest.raises(rewards.RewardError, match="must explain each of 2 images by a text"):
            explain(Fails(said), images, ["a", "b"])
    with pytest.raises(rewards.RewardError, match="cannot explain its scores: KeyError: 'why'"):
        explain(Fails({}), images, ["a", "b"])


def test_a_reward_that_says_what_is_wrong_gives_verdicts(tiny: str) -> None:
    how = Evaluation(images=6, sampler=Sampler(1))
    found = evaluate(models.load(tiny), prompts.load("scenes"), how, {"black": Black(), "wrong": Wrong()})["scores"]
    assert found["black"]["overall"]["high"] == 0
    assert found["wrong"]["overall"]["high"] == pytest.approx(0.39, abs=0.01)
    assert found["wrong"]["categories"]["colors"]["high"] == pytest.approx(0.79, abs=0.01)


def test_graded_scores_are_no_verdicts_even_with_an_explanation(tiny: str) -> None:
    class Half(Wrong):
        def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
            return torch.full((len(images),), 0.5)

    how = Evaluation(images=6, sampler=Sampler(1))
    found = measure(models.load(tiny), prompts.load("scenes"), how, {"half": Half(), "wrong": Wrong()})
    assert found.verdicts == {"wrong"}


# Measurements by hand


def made(name: str, scores: Mapping[str, Sequence[float]], per_prompt: int = 1, **more: Any) -> Measurement:
    """One of images whose prompts 'a 0', 'b 1', 'a 2', ... alternate between the categories a and b."""
    count = len(next(iter(scores.values())))
    numbers = [k // per_prompt for k in range(count)]
    used = {"weights": "policy", "steps": 2, "seed": 7, "guidance": None, "prompts": "mine", "images": count}
    used |= {"model": {"name": name}, "rewards": {each: {"kind": "x"} for each in scores}, "guard": []}
    return Measurement(
        name,
        {**used, "prompts_sha256": "1", "versions": {"torch": "2"}, **more},
        tuple(f"{'ab'[k % 2]} {k}" for k in numbers),
        tuple("ab"[k % 2] for k in numbers),
        {each: torch.tensor(own) for each, own in scores.items()},
        frozenset(each for each in scores if each.endswith("strict")),
    )


def test_the_mean_of_categories_and_both_intervals() -> None:
    one = made("one", {"strict": [1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0], "soft": [0.5] * 8})
    said = one.summary()["scores"]
    assert said["strict"]["verdicts"] and not said["soft"]["verdicts"]
    overall = said["strict"]["overall"]
    assert overall["mean"] == 0.5 and overall["n"] == 8 and overall["prompts"] == 8
    wilson = interval(one.scores["strict"], verdicts=True)
    assert (overall["low"], overall["high"]) == (wilson["low"], wilson["high"])  # what they always were
    assert overall["low"] != overall["over_prompts"][0] and overall["over_prompts"] == pytest.approx(
        [0.125, 0.875], abs=0.13
    )
    assert said["strict"]["categories"]["a"]["mean"] == 0.75 and said["strict"]["categories"]["a"]["prompts"] == 4
    assert said["soft"]["overall"]["over_prompts"] == [0.5, 0.5]


def test_nothing_is_said_of_other_prompts_where_nothing_is_known() -> None:
    alike = made("one", {"strict": [1.0] * 6}).summary()["scores"]["strict"]["overall"]
    assert alike["over_prompts"] is None and alike["low"] < 1
    single = made("one", {"soft": [0.2, 0.4]}, per_prompt=2).summary()["scores"]["soft"]["overall"]
    assert single["over_prompts"] is None and single["prompts"] == 1


def test_images_of_one_prompt_do_not_narrow_what_is_said_of_prompts() -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(0)).tolist()
    once = made("one", {"soft": values}).summary()["scores"]["soft"]["overall"]
    thrice = made("one", {"soft": np.repeat(values, 3).tolist()}, per_prompt=3).summary()["scores"]["soft"]["overall"]
    assert thrice["over_prompts"] == pytest.approx(once["over_prompts"])
    assert thrice["high"] - thrice["low"] < 0.6 * (once["high"] - once["low"])


# Pairs


def test_pairs_by_hand() -> None:
    before = made("base", {"strict": [0.0, 0, 0, 0, 1, 1, 1, 0], "soft": [0.1] * 8})
    after = made("run", {"strict": [1.0, 1, 1, 0, 1, 1, 0, 0], "soft": [0.2] * 8})
    overall = {each.score: each for each in differences([before, after]) if each.category is None}
    strict, soft = overall["strict"], overall["soft"]
    assert (strict.gained, strict.lost, strict.n, strict.prompts) == (3, 1, 8, 8)
    assert strict.mean == pytest.approx(2 / 8) and strict.low is not None and strict.low < 0 < strict.mean
    assert strict.p >= mcnemar(3, 1) == pytest.approx(0.625) and not strict.significant
    assert (soft.gained, soft.lost) == (None, None)
    assert (soft.mean, soft.low, soft.high) == pytest.approx((0.1, 0.1, 0.1)) and soft.significant
    parts = {each.category: each for each in differences([before, after]) if each.score == "strict" and each.category}
    assert parts["a"].gained == 2 and parts["a"].lost == 1 and parts["b"].gained == 1 and parts["b"].lost == 0
    assert all(each.before == "base" and each.after == "run" for each in overall.values())


def test_a_model_does_not_differ_from_itself() -> None:
    one = made("one", {"strict": [0.0, 1, 1, 0, 1, 1], "soft": [0.1, 0.5, 0.2, 0.3, 0.9, 0.0]})
    for each in differences([one, replace(one, name="again")]):
        assert (each.mean, each.p) == (0, 1) and not each.significant
        assert (each.low, each.high) == ((0, 0) if each.score == "soft" else (None, None))


def test_verdicts_that_do_not_change_bound_nothing() -> None:
    """As with one model: that none of six changed is no proof that none of the next ones does."""
    right, wrong = made("right", {"strict": [1.0] * 6}), made("wrong", {"strict": [0.0] * 6})
    for each in differences([right, replace(right, name="other")]):
        assert (each.mean, each.low, each.high) == (0, None, None)
    rise = next(each for each in differences([wrong, right]) if each.category is None)
    assert (rise.change.low, rise.change.high) == (1, 1)  # a guard that falls meanwhile is told


def test_pairs_see_what_means_cannot() -> None:
    """Prompts differ much, models little, always in the same direction."""
    values = torch.linspace(0, 1, 40)
    before, after = made("a", {"soft": values.tolist()}), made("b", {"soft": (values + 0.02).tolist()})
    (change, *_) = differences([before, after])
    one, other = (each.summary()["scores"]["soft"]["overall"] for each in (before, after))
    assert one["high"] > other["low"] and change.significant


def test_several_models_have_to_show_more() -> None:
    rng = torch.Generator().manual_seed(0)
    found = [made(name, {"soft": (torch.randn(30, generator=rng) + k / 3).tolist()}) for k, name in enumerate("xyz")]
    overall = [each for each in differences(found) if each.category is None]
    assert [(each.before, each.after) for each in overall] == [("x", "y"), ("x", "z"), ("y", "z")]
    assert sorted(each.p for each in overall)[0] * 3 == pytest.approx(min(each.p_adjusted for each in overall))
    assert all(each.p_adjusted >= each.p for each in overall)
    (alone, *_) = differences(found[:2])
    assert alone.p_adjusted == alone.p == overall[0].p
    in_categories = [each for each in differences(found[:2]) if each.category]
    assert max(each.p_adjusted for each in in_categories) >= max(each.p for each in in_categories)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 3}, r"base and run cannot be compared, .* other settings: steps \(2 and 3\)"),
        ({"guidance": 2.0, "seed": 1}, r"guidance \(none and 2.0\), seed \(7 and 1\)|seed .* guidance"),
        ({"prompts_sha256": "2"}, r"prompts \(two versions of mine\)"),
        ({"prompts_sha256": "2", "prompts": "yours"}, r"prompts \(mine and yours\)"),
        ({"rewards": {"soft": {"kind": "x", "model": "large"}}}, r"model of reward soft \(none and large\)"),
    ],
)
def test_numbers_with_other_settings_are_not_compared(changed: dict[str, Any], said: str) -> None:
    pair = [made("base", {"soft": [0.1, 0.2]}), made("run", {"soft": [0.2, 0.3]}, **changed)]
    with pytest.raises(ValueError, match=said):
        differences(pair)


def test_what_may_differ() -> None:
    base = made("base", {"soft": [0.1, 0.2]}, rewards={"soft": {"kind": "x", "device": "cpu"}})
    free: dict[str, Any] = {
        "weights": "ema",
        "prompts": "renamed",  # the hash decides
        "versions": {"torch": "3"},
        "rewards": {"soft": {"kind": "x", "device": "cuda"}, "other": {"kind": "y"}},
    }
    run = made("run", {"soft": [0.2, 0.3]}, **free)
    differences([base, run])
    assert comparison.warnings([base, run]) == ["base and run were measured with other versions of torch (2 and 3)"]
    assert comparison.warnings([base, base]) == []
    with pytest.raises(ValueError, match="no score in common, only soft and hard"):
        differences([base, made("run", {"hard": [0.2, 0.3]})])
    model_grids = [replace(each, settings={**each.settings, "grid": "model", "times": [1, t, 0]})
                   for each, t in ((base, 0.5), (run, 0.6))]  # fmt: skip
    differences(model_grids)
    assert "take their steps at other times" in comparison.warnings(model_grids)[1]


# Guards


def test_hacking_needs_both() -> None:
    rise, fall = Change("ocr", 0.2, 0.1, 0.3), Change("aesthetic", -0.5, -0.75, -0.25)
    said = hacked(rise, fall)
    assert said and said.startswith("ocr rose by 0.2 [0.1, 0.3] while aesthetic fell by 0.5 [0.25, 0.75]: ")
    assert hacked(rise, replace(fall, high=0.01)) is None
    assert hacked(replace(rise, low=-0.01), fall) is None
    assert hacked(fall, rise) is None


def test_guards_are_watched() -> None:
    values = torch.linspace(0, 1, 20)
    base = made("base", {"ocr": [0.0] * 20, "nice": values.tolist()}, guard=["nice"])
    run = made("run", {"ocr": [0.5] * 20, "nice": (values - 0.1).tolist()}, guard=["nice"])
    (line,) = comparison.hacking([base, run], differences([base, run]))
    assert line.startswith("run against base: ocr rose by 0.5") and "nice fell by 0.1" in line
    unwatched = [replace(each, settings={**each.settings, "guard": []}) for each in (base, run)]
    assert comparison.hacking(unwatched, differences(unwatched)) == []
    with pytest.raises(ValueError, match="'balance' is the headline, so it cannot be a guard"):
        Evaluation(rewards=("balance",), guard=("balance",))


# What is written down


def test_scores_survive_the_file(tmp_path: Path) -> None:
    values = [1 / 3, -1e-7, 12345.678, 0.0, 1.0, 3e10]
    found = [made(name, {"soft": values, "strict": [0.0, 1, 1, 0, 1, 1]}, per_prompt=2) for name in ("x", "y")]
    changes = [each.to_dict() for each in differences(found)]
    file = tmp_path / "a.json"
    file.write_text(measurement.to_json(found, changes))
    again = measurement.read(file)
    assert [each.summary() for each in again] == [each.summary() for each in found]
    assert all(torch.equal(each.scores["soft"], torch.tensor(values)) for each in again)
    assert again[0].texts == found[0].texts and again[0].verdicts == {"strict"}
    assert json.loads(file.read_text())["models"]["x"]["per_image"]["strict"] == "0 1 1 0 1 1"
    assert [Difference(**{k: v for k, v in each.items() if k != "significant"}) for each in changes] == differences(
        again
    )


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"texts": []}', '{"texts": [], "models": 3}', None])
def test_other_files_are_refused(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "a.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=r"a\.json is not what|there is no file"):
        measurement.read(file)


def test_models_of_one_name_are_told_apart() -> None:
    one, other = made("x", {"soft": [0.1, 0.2]}), made("y", {"soft": [0.1, 0.2]})
    found = measurement.told_apart([("a", one), ("b", one), ("b", other), ("b", one)])
    assert [each.name for each in found] == ["a: x", "b: x", "y", "b: x (2)"]
    assert [each.settings["model"]["name"] for each in found] == [each.name for each in found]


@dataclass
class Sized:
    model: str = "small"
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._network = object()

    def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return images.mean((1, 2, 3))


def test_everything_that_a_number_depends_on_is_beside_it(tiny: str) -> None:
    policy, texts = models.load(tiny), prompts.load("scenes")
    how = Evaluation(images=6, sampler=Sampler(2, solver="sa"), guard=("sized",))
    said = settings(policy, texts, how, {"balance": rewards.make("balance"), "sized": Sized("large")})
    assert said["rewards"]["sized"] == {"kind": f"{__name__}.Sized", "model": "large", "device": "cpu"}
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
    assert measure(models.load(tiny), texts, how, {"agrees": agrees}).scores["agrees"].tolist() == [1] * 7


def test_as_many_images_of_every_prompt() -> None:
    texts = PromptSet("x", ("a", "b", "c"), ("one", "one", "two"))
    assert Evaluation(images_per_prompt=2).chosen(texts) == [0, 0, 1, 1, 2, 2]
    assert Evaluation(images=4).chosen(texts) == texts.spread(4)
    with pytest.raises(ValueError, match="at least 1 image per prompt, not 0"):
        Evaluation(images_per_prompt=0)


def test_rewards_take_their_options() -> None:
    rewards.REWARDS["sized"] = Sized
    try:
        found = load_rewards(["balance", "sized"], ["sized.model=large"])
        assert found["sized"] == Sized("large")
        found = load_rewards(["sized=0.5", "balance"], ["sized.model=large"])
        assert [each for _, _, each in rewards.terms(found["sized=0.5"])] == [Sized("large")]
        with pytest.raises(ValueError, match="options of 'other', which is not among the rewards"):
            load_rewards(["balance"], ["other.model=large"])
        with pytest.raises(ValueError, match="is no option of a reward"):
            load_rewards(["balance"], ["large"])
    finally:
        del rewards.REWARDS["sized"]
    with pytest.raises(ValueError, match="name at least one reward"):
        load_rewards([])


def test_an_evaluator_loads_its_rewards_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made_of: list[int] = []
    monkeypatch.setitem(rewards.REWARDS, "counted", lambda: made_of.append(1) or Black())
    how = Evaluation(rewards=("counted",), guard=("balance",), images=6, sampler=Sampler(1))
    one = Evaluator(models.load(tiny), how, prompts.load("scenes"), pictures=2)
    assert set(one.scores()["scores"]) == {"counted", "balance"}
    one.scores(), one.grid()
    assert made_of == [1]


# The command


HOW = ["--images", "8", "--steps", "1", "--batch", "5"]


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["eval", *map(str, words)]) == code
    found = capsys.readouterr()
    return " ".join((found.out if code == 0 else found.err).split())


@pytest.fixture(scope="module")
def lora(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported LoRA whose images differ from those of its base."""
    policy = models.load(tiny, 2, "float32")
    with torch.no_grad():
        for number, tensor in enumerate(policy.weights.tensors("policy").values()):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    folder = tmp_path_factory.mktemp("export")
    export.lora(policy, folder, {"base_model": tiny, "guidance": 1.0})
    return folder


def test_an_exported_lora_is_its_base_with_adapters(tiny: str, lora: Path) -> None:
    file = lora / models.LORA_FILE
    found = [policy_of(str(name), "policy", precision="float32") for name in (lora, file)]
    base = models.load(tiny, precision="float32")
    x, t = torch.randn(2, *base.latent_shape), torch.tensor([0.3, 0.8])
    values = [each.velocity(x, t, each.encode(["a circle", "two rings"])).detach() for each in (*found, base)]
    assert torch.equal(values[0], values[1]) and not torch.allclose(values[0], values[2], atol=1e-3)
    trained = models.load(tiny, 2, "float32")
    trained.weights.load("policy", found[0].weights.tensors("policy"))
    assert torch.equal(trained.velocity(x, t, trained.encode(["a circle", "two rings"])).detach(), values[0])
    assert found[0].identity["base"] == base.identity["base"]


@pytest.mark.parametrize("family", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_an_exported_lora_of_a_pipeline(family: str, tmp_path: Path) -> None:
    tiny_pipelines.tiny(family).save_pretrained(tmp_path / "base")
    loading = Loading(size=(32, 32), device="cpu")
    trained = models.load(str(tmp_path / "base"), 2, "float32", loading=loading)
    with torch.no_grad():
        for tensor in trained.weights.tensors("policy").values():
            tensor.normal_()
    export.lora(trained, tmp_path / "lora", {"base_model": str(tmp_path / "base")})
    found = policy_of(str(tmp_path / "lora"), "policy", loading, "float32")
    for key, tensor in trained.weights.tensors("policy").items():
        assert torch.equal(found.weights.tensors("policy")[key], tensor)
    assert found.identity == trained.identity and found.name == str(tmp_path / "lora")


def test_adapters_of_others_are_refused(tiny: str, lora: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"other\.safetensors does not name its base model"):
        policy_of(str(file), "policy")
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"other\.safetensors cannot be read"):
        policy_of(str(file), "policy")


def test_models_against_each_other(
    capsys: pytest.CaptureFixture[str], tiny: str, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, or from two files: the same differences; and the page holds every number."""
    both, one, other, html = (tmp_path / name for name in ("both.json", "one.json", "other.json", "page.html"))
    how = [*HOW, "--guard", "jpeg-compressibility", "--precision", "float32"]
    out = said(capsys, tiny, lora, *how, "--json", both, "--html", html)
    assert f"{lora} against {tiny}, image by image" in out and "(other prompts)" in out
    said(capsys, tiny, *how, "--json", one)
    said(capsys, lora, *how, "--json", other)
    again = tmp_path / "again.json"
    said(capsys, "--compare", one, other, "--json", again)
    assert json.loads(again.read_text()) == json.loads(both.read_text())
    assert "against" in said(capsys, "--compare", both)  # one file with two models will do

    found = json.loads(both.read_text())
    assert len(found["differences"]) == 3 * (1 + len(set(found["categories"])))
    words = page_words(html)
    for result in found["models"].values():
        for name, score in result["scores"].items():
            for own in (score["overall"], *score["categories"].values()):
                factor, digits = (100, 1) if name.endswith("strict") else (1, 3)
                for number in (own["mean"], own["low"], own["high"], *(own["over_prompts"] or ())):
                    assert ("[–]" if number is None else f"{factor * number:.{digits}f}") in words
    for each in found["differences"]:
        factor, digits = (100, 1) if each["score"].endswith("strict") else (1, 3)
        for number in (each["mean"], each["low"], each["high"]):
            if number is not None:
                assert f"{factor * number:+.{digits}f}".replace("-", "−") in words
    for setting in (
        "solver euler",
        "seed 1234",
        "versions.torch",
        "rewards.balance.kind",
        "prompts_sha256",
        "8 images",
    ):
        assert setting in words


def page_words(file: Path) -> str:
    markup = re.sub(r"<(script|style).*?</\1>", "", file.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def test_the_page_needs_no_network_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    found = []
    for name in ("runs/<i>base", "run & more", "third"):
        one = made(name, {"strict": [0.0, 1, 1, 0, 1, 1], "soft": torch.rand(6).tolist()}, guard=["soft"])
        texts = tuple(f"<b>{text}" for text in one.texts)
        found.append(replace(one, texts=texts, pictures=tuple(thumbnails(torch.rand(6, 3, 8, 8)))))
    html = evaluation_page.of(found, differences(found), "flowward eval 'a' <b>")
    assert "<i>base" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL) and "<b>a 0" not in html
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", html)
    assert html.count("data:image/png") >= 3 * 4 and "Best" in html and "Worst" in html
    large = evaluation_page.of([replace(found[0], pictures=tuple(thumbnails(torch.rand(6, 3, 300, 200))))], [])
    assert "data:image/jpeg" in large and "Gained most" not in large


def test_unequal_models_are_refused_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str], tiny: str, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one.json", tmp_path / "new" / "other.json"
    said(capsys, tiny, *HOW, "--json", one)
    said(capsys, lora, *HOW, "--steps", "2", "--json", other)
    sentence = said(capsys, "--compare", one, other, code=2)
    assert "cannot be compared, they were measured with other settings: steps (1 and 2)" in sentence
    assert "cannot write" in said(capsys, tiny, *HOW, "--json", tmp_path, code=2)
    assert "takes two models" in said(capsys, "--compare", one, code=2)
    assert "leave one of the two out" in said(capsys, tiny, "--compare", one, code=2)

    real = exported.load
    monkeypatch.setattr(exported, "load", lambda name, precision, loading: real(name, "bf16", loading))
    kept = tmp_path / "kept.json"
    sentence = said(capsys, tiny, lora, *HOW, "--precision", "float32", "--json", kept, code=2)
    assert "precision (float32 and bf16)" in sentence and f"measured before is in {kept}" in sentence
    assert [each.name for each in measurement.read(kept)] == [tiny]
