"""Numbers with everything that they depend on; models compared image by image, and only where that is fair."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from measurements import made

from flowward.evaluation import comparison, measurement
from flowward.evaluation.comparison import Difference, differences
from flowward.evaluation.evaluate import Evaluation, interval
from flowward.evaluation.hacking import Change, hacked
from flowward.evaluation.statistics import mcnemar

# Measurements by hand


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
        ({"steps": 3}, r"base and run cannot be compared because of different settings: steps \(2 and 3\)"),
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
    assert comparison.warnings([base, run]) == ["base and run were measured with different versions of torch (2 and 3)"]
    assert comparison.warnings([base, base]) == []
    with pytest.raises(ValueError, match="no score in common: soft and hard"):
        differences([base, made("run", {"hard": [0.2, 0.3]})])
    model_grids = [replace(each, settings={**each.settings, "grid": "model", "times": [1, t, 0]})
                   for each, t in ((base, 0.5), (run, 0.6))]  # fmt: skip
    differences(model_grids)
    assert "use different time grids" in comparison.warnings(model_grids)[1]


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
    with pytest.raises(ValueError, match="'balance' is the headline score, so it cannot be a guard"):
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
    with pytest.raises(ValueError, match=r"a\.json (was not written|does not exist)"):
        measurement.read(file)


def test_models_of_one_name_are_told_apart() -> None:
    one, other = made("x", {"soft": [0.1, 0.2]}), made("y", {"soft": [0.1, 0.2]})
    found = measurement.told_apart([("a", one), ("b", one), ("b", other), ("b", one)])
    assert [each.name for each in found] == ["a: x", "b: x", "y", "b: x (2)"]
    assert [each.settings["model"]["name"] for each in found] == [each.name for each in found]
