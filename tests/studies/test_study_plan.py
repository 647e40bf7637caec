"""What a study is, which runs it has, and which files are refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flowward.algorithms import ALGORITHMS
from flowward.algorithms.presets import PRESETS
from flowward.studies import knobs, plan, schedule
from flowward.studies.costs import Cost
from flowward.training.config import from_dict

GIVEN: dict[str, Any] = {
    "algorithms": ["advantageflow", "flow_grpo"],
    "budgets": {"images": 1000, "evaluations": 30000},
}
COSTS = {
    "advantageflow": Cost(images=288, forward=14.0, trained=2.0, backward=3.0, seconds=0.01),
    "flow_grpo": Cost(images=288, forward=10.0, trained=9.0, backward=3.0, seconds=0.02),
}


def study(**changes: Any) -> plan.Study:
    return plan.of({**GIVEN, **changes})


def test_costs_of_an_image_turn_budgets_into_images() -> None:
    """20 = 14 + 3 x 2 forward passes, and 37 = 10 + 3 x 9."""
    ours, theirs = COSTS["advantageflow"], COSTS["flow_grpo"]
    assert (ours.evaluations, theirs.evaluations) == (20.0, 37.0)
    assert ours.images_for("evaluations", 30000) == 1500 and ours.images_for("images", 1000) == 1000
    assert theirs.images_for("seconds", 10) == pytest.approx(500)
    assert schedule.longest(study(), ours) == 1500 and schedule.longest(study(), theirs) == 1000


def test_runs_reach_every_budget_in_equal_parts() -> None:
    """1,500 images are 5.2 iterations of 288, so 6; with 4 points there is an evaluation after every second one."""
    assert schedule.lengths(1500, COSTS["advantageflow"], 4) == {
        "iterations": 8, "evaluate_every": 2, "checkpoint_every": 2,
    }  # fmt: skip
    assert schedule.lengths(576, COSTS["advantageflow"], 2)["iterations"] == 2


def test_every_algorithm_has_as_many_trials_in_its_own_range() -> None:
    assert knobs.halton(1, 2) == 0.5 and knobs.halton(6, 2) == 0.375 and knobs.halton(5, 3) == pytest.approx(7 / 9)
    for name in GIVEN["algorithms"]:
        first, *others = knobs.trials(name, 6)
        assert first == {} and len(others) == 5 and list(knobs.trials(name, 3))[1:] == others[:2]
        for path, (low, high) in knobs.knobs(name).items():
            section, _, key = path.partition(".")
            values = [each[section][key] for each in others]
            assert all(low <= value <= high for value in values) and len(set(values)) == 5
    assert list(knobs.knobs("flow_grpo")) == ["run.learning_rate"]
    assert list(knobs.knobs("flowawr")) == ["run.learning_rate", "algorithm.credit.temperature"]


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if "scenes" in PRESETS[name]])
def test_every_trial_of_every_algorithm_is_possible(name: str) -> None:
    for trial in knobs.trials(name, 8):
        own = {**trial.get("algorithm", {}), "name": name}
        from_dict({**trial, "algorithm": own})


def test_every_run_is_a_config_file() -> None:
    """Search and comparison differ in seed, prompts and length; the chosen trial goes into every seed."""
    asked = study(search={"trials": 3}, rewards={"one": "scenes", "two": ["scenes-strict", "balance"]})
    searched = list(schedule.searched(asked, COSTS, Path("at")))
    compared = list(schedule.compared(asked, COSTS, {"two/advantageflow": 2}, Path("at")))
    assert len(searched) == 2 * 2 * 3 and len(compared) == 2 * 2 * 3
    assert len({each.name for each in searched + compared}) == 24
    for each in searched + compared:
        found = from_dict(dict(each.settings))
        assert found.reward == asked.rewards[each.reward] and found.run.seed == each.seed and found.threads == 1
        assert found.prompts == "at/prompts/training.jsonl"
        held_out = "at/prompts/validation.jsonl" if each.trial is not None else "scenes-held-out"
        assert found.evaluation.prompts == held_out and found.evaluation.rewards[0] == "scenes-strict"
        assert (found.run.seed == 100) == (each.trial is not None)
    third = next(each for each in searched if each.name == "search/two/advantageflow/2")
    chosen = next(each for each in compared if each.name == "compared/two/advantageflow/1")
    assert chosen.settings["algorithm"] == third.settings["algorithm"]
    assert chosen.settings["run"]["learning_rate"] == third.settings["run"]["learning_rate"]
    assert [each.seed for each in compared] == [0] * 4 + [1] * 4 + [2] * 4  # a stopped study has some of everything


def test_settings_of_all_runs_and_of_one_algorithm() -> None:
    asked = study(options={"run": {"group_size": 4}}, own={"flow_grpo": {"algorithm": {"clip": 0.002}}})
    found = {each.algorithm: from_dict(dict(each.settings)) for each in schedule.compared(asked, COSTS, {}, Path("at"))}
    assert {own.run.group_size for own in found.values()} == {4} and found["flow_grpo"].algorithm.clip == 0.002


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithms": ["flow_grp"]}, "unknown algorithm .flow_grp.; did you mean"),
        ({"algorithms": ["awm", "awm"]}, "algorithm awm is named twice"),
        ({"algorithms": ["meanflow_advantage"]}, "is for another kind of model, scenes-4step"),
        ({"algorithms": []}, "need at least one entry each"),
        ({"seeds": [1, 1]}, "seed 1 is named twice"),
        ({"seeds": [-1]}, "seed must be between 0 and"),
        ({"budgets": {}}, "name at least one of images, evaluations and seconds"),
        ({"budgets": {"images": 0}}, "images must be a positive number"),
        ({"budgets": {"hours": 1}}, "unknown setting 'budgets.hours'"),
        ({"search": {"trials": 1}}, "a search needs at least 2 trials"),
        ({"search": {"trials": 3, "seed": 1}}, "the search has the seed 1 of a compared run"),
        ({"rewards": {"a/b": "scenes"}}, "'a/b' is no name for a reward here"),
        ({"rewards": ["scenes"], "reward": "x"}, "unknown setting 'reward'; did you mean 'rewards'?"),
        ({"options": {"run": {"learning_rat": 1}}}, "unknown setting 'run.learning_rat'"),
        ({"options": {"model": "x"}}, "options.model: name it at the top of the file"),
        ({"own": {"awm": {}}}, "unknown algorithm of this study 'awm'"),
        ({"points": 0}, "points must be at least 1"),
    ],
)
def test_impossible_studies_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        study(**changes)


def test_a_budget_that_is_less_than_an_iteration_is_refused() -> None:
    schedule.refuse(study(), COSTS)
    with pytest.raises(ValueError, match=r"budgets.images = 100 is less than one iteration of advantageflow, .* 288"):
        schedule.refuse(study(budgets={"images": 100}), COSTS)
    with pytest.raises(ValueError, match=r"budgets.seconds = 3 is less than one iteration of flow_grpo, .* takes 5.76"):
        schedule.refuse(study(budgets={"seconds": 3}), COSTS)


def test_variants_are_compared_under_their_own_names() -> None:
    """With settings of their own, and never searched."""
    given: dict[str, Any] = {
        "algorithms": ["awm"],
        "variants": {"far": {"algorithm": {"name": "advantageflow", "gamma": 5.0}, "run": {"learning_rate": 1e-4}}},
        "budgets": {"images": 1000},
        "search": {"trials": 2},
    }
    study = plan.of(given)
    assert study.entries == ("awm", "far") and study.kind("far") == "advantageflow"
    cost = dict.fromkeys(study.entries, Cost(100, 1.0, 1.0, 3.0, 0.01))
    assert {each.algorithm for each in schedule.searched(study, cost, Path("x"))} == {"awm"}
    runs = [each for each in schedule.compared(study, cost, {}, Path("x")) if each.algorithm == "far"]
    made = from_dict(dict(runs[0].settings))
    assert made.algorithm.gamma == 5.0 and made.run.learning_rate == 1e-4 and runs[0].name.endswith("far/0")


@pytest.mark.parametrize(
    ("variants", "said"),
    [
        ({"awm": {"algorithm": {"name": "awm"}}}, "variant awm has the name of an algorithm"),
        ({"..": {"algorithm": {"name": "awm"}}}, "'..' is no name for a variant here"),
        ({"far": {"run": {}}}, "variants.far needs the name of an algorithm"),
        ({"far": {"algorithm": {"name": "awn"}}}, "unknown algorithm 'awn'"),
        ({"far": {"algorithm": {"name": "awm", "gama": 1}}}, "gama"),
    ],
)
def test_impossible_variants(variants: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        plan.of({"budgets": {"images": 1000}, "variants": variants})


def test_a_reward_without_a_gradient_is_refused_before_any_run() -> None:
    """Any of the rewards, not the first alone; other algorithms need none."""
    both = {"net": ["scenes-net"], "strict": ["scenes-strict"]}
    with pytest.raises(ValueError, match="draft needs the gradient of the reward, and reward 'scenes-strict' has none"):
        schedule.refuse_without_gradients(study(algorithms=["awm", "draft"], rewards=both))
    schedule.refuse_without_gradients(study(algorithms=["draft"], rewards={"net": ["scenes-net"]}))
    schedule.refuse_without_gradients(study(rewards=both))
