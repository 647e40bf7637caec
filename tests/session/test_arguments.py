"""What newcomers pass: names, files, lists and functions; and one sentence for anything else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TEXTS, algorithm, bright
from torch import Tensor

import flowward
from flowward import prompts, rewards
from flowward.algorithms import ALGORITHMS, AdvantageFlow
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.process.policy import Policy
from flowward.session import measuring
from flowward.session.arguments import LISTED, Arguments, listed, prompt_set
from flowward.session.fitted import Fitted
from flowward.training.hooks import Hooks
from flowward.training.run import Run

pytestmark = pytest.mark.processor
SETTINGS: dict[str, Any] = {"images_per_update": 8, "group_size": 4, "microbatch": 8}


def dark(images: Tensor, texts: Sequence[str]) -> Tensor:
    return 1 - bright(images, texts)


@pytest.fixture(scope="module")
def policy(tiny: str) -> Policy:
    return flowward.load(tiny, precision="float32")


@pytest.fixture
def scenes(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny model is the built-in one."""
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))


def read(policy: Any, **changes: Any) -> Arguments:
    given = {"algorithm": algorithm(), "reward": bright, "prompts": list(TEXTS), "run": None, "output": None}
    return Arguments.read(**{**given, "policy": policy, "changes": {}, **changes})


def nothing(policy: Any, **changes: Any) -> Fitted:
    """A run of no iteration."""
    given = {"algorithm": algorithm(), "reward": bright, "prompts": list(TEXTS), "evaluation": False, **SETTINGS}
    return flowward.fit(**{**given, "policy": policy, "iterations": 0, "progress": False, **changes})


def test_everything_may_be_a_name(scenes: None) -> None:
    run = nothing("scenes", algorithm="flow_grpo", reward="scenes", prompts="scenes")
    config = run._config
    assert config["algorithm"]["name"] == "flow_grpo" and config["model"] == config["prompts"] == "scenes"
    assert config["reward"] == ["scenes"] and config["run"]["images_per_update"] == 8
    assert (
        config["run"]["learning_rate"]
        == flowward.training.config.starting("flow_grpo", None, "scenes").run.learning_rate
    )  # type: ignore[attr-defined]


def test_a_rewards_file_and_a_prompt_file_are_named_by_their_paths(
    policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def bright(images, prompts):\n    return images.mean((1, 2, 3))\n")
    Path("mine.txt").write_text("a circle\ntwo rings\n")
    parts = read(policy, reward=["mine.py:bright=2", "jpeg-compressibility"], prompts=Path("mine.txt"))
    assert parts.named == {
        "reward": [f"{tmp_path}/mine.py:bright=2", "jpeg-compressibility"],
        "prompts": f"{tmp_path}/mine.txt",
    }
    assert parts.prompts.texts == ("a circle", "two rings")
    how = measuring.evaluator(parts)
    assert [*how.rewards] == ["mine.py:bright", "jpeg-compressibility"]
    assert how.told.rewards == (f"{tmp_path}/mine.py:bright", "jpeg-compressibility")


def test_names_and_functions_may_be_mixed(policy: Policy) -> None:
    reward = read(policy, reward=["jpeg-compressibility=0.5", bright, dark]).reward
    assert [(name, weight) for name, weight, _ in rewards.terms(reward)] == [
        ("jpeg-compressibility", 0.5),
        ("bright", 1.0),
        ("dark", 1.0),
    ]
    with pytest.raises(ValueError, match="two rewards are named 'bright'; give one of the functions another name"):
        read(policy, reward=[bright, bright])


def test_prompts_of_a_list_are_kept_beside_the_run(policy: Policy, tmp_path: Path) -> None:
    """The file gives an equal set, so a resumed run has the same prompts."""
    run = nothing(policy, prompts=["a circle", "two rings", "a circle"], output=tmp_path / "run", evaluation=True)
    file = run.folder / "prompts.jsonl"
    given, _ = prompt_set(["a circle", "two rings"])
    again = prompts.load(str(file))
    assert (again.texts, again.categories) == (given.texts, given.categories) and len(set(given.categories)) == 2
    config = run._config
    assert config["prompts"] == config["evaluation"]["prompts"] == str(file)
    moved = run.save(tmp_path / "moved")
    assert (moved / "prompts.jsonl").read_bytes() == file.read_bytes()
    assert str(moved / "prompts.jsonl") in (moved / "config.yaml").read_text()
    assert [json.loads(line) for line in file.read_text().splitlines()] == listed(given)
    assert listed(replace(given, name="scenes")) == listed(replace(given, metadata=({}, {}))) == []


def test_keywords_change_settings_of_a_run(policy: Policy, tmp_path: Path) -> None:
    own = Run(iterations=7, group_size=4, images_per_update=8)
    run = read(policy, run=own, changes={"iterations": 3}, output=str(tmp_path)).run
    assert run == replace(own, iterations=3, output=tmp_path)
    assert read(policy, run=own).run == own


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": "flow_gpo"}, "unknown algorithm 'flow_gpo'; did you mean 'flow_grpo'"),
        ({"algorithm": AdvantageFlow}, "not the name or the class AdvantageFlow"),
        ({"algorithm": 3}, "int is not an algorithm: it has no behaviour"),
        ({"policy": 3}, r"policy must be the name of a model, or a model from flowward.load\(name\), not int"),
        ({"policy": "nowhere"}, "nowhere"),
        ({"reward": "scens"}, "unknown reward 'scens'; did you mean 'scenes'"),
        ({"reward": 3}, "reward must be the name of a reward, a function, or a list of them, not int"),
        ({"reward": [bright, 3]}, "reward must be the name of a reward, a function, or a list of them, not int"),
        ({"reward": []}, "name at least one reward"),
        ({"reward": lambda images: images}, r"must accept \(images, prompts\) or \(images, prompts, metadata\)"),
        ({"prompts": 3}, "prompts must be the name of a prompt set, a file, a list of texts or a PromptSet, not int"),
        (
            {"prompts": [3]},
            "prompts must be the name of a prompt set, a file, a list of texts or a PromptSet, not list",
        ),
        ({"prompts": []}, "'given prompts' contains no prompt"),
        ({"prompts": "scens"}, "unknown prompt set 'scens'"),
        ({"prompts": "a red circle"}, r"to train on this text itself, give a list: \['a red circle'\]"),
        ({"prompts": ["a weird thing"]}, "does not know the word 'weird'"),
        ({"run": {"iterations": 3}}, r"run must be flowward.Run\(...\), not {'iterations': 3}"),
        ({"iteratons": 3}, "unknown setting 'iteratons'; did you mean 'iterations'"),
        ({"lora_rank": 3}, r"lora_rank belongs to the model: give policy=flowward.load\(NAME, ...\) with it"),
        ({"iterations": "many"}, "iterations: must be a whole number, not 'many'"),
        ({"group_size": 3}, "8 images per iteration cannot be split into groups of 3"),
        ({"evaluation": 3}, "evaluation must be True, False, a mapping of settings or an Evaluation, not int"),
        ({"evaluation": {"imges": 3}}, "unknown setting of the evaluation 'imges'; did you mean 'images'"),
        ({"evaluation": {"rewards": "scens"}}, "unknown reward 'scens'"),
        ({"evaluation": {"images": 0}}, "an evaluation needs at least 1 image"),
        ({"hook": 3}, "a hook is a function of a step, not 3"),
        ({"hook": lambda: None}, r"hook '<lambda>' must accept \(step\)"),
        ({"memory": 8.0}, "--memory works only on CUDA devices"),
    ],
)
def test_what_is_of_a_wrong_kind_is_refused_in_a_sentence(
    policy: Policy, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        nothing(**{"policy": policy, "output": tmp_path / "run", "progress": True, **changes})
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_a_folder_that_is_taken_is_refused(policy: Policy, tmp_path: Path) -> None:
    nothing(policy, output=tmp_path / "run")
    with pytest.raises(ValueError, match="already contains a run"):
        nothing(policy, output=tmp_path / "run")


# What measures a run by default


def test_the_built_in_world_is_measured_as_by_the_command(policy: Policy) -> None:
    how = measuring.evaluator(read(policy, reward="scenes", prompts="scenes"))
    assert how.evaluation == Evaluation() and how.prompts.name == "scenes-held-out"
    other = measuring.evaluator(read(policy, reward=bright, prompts="scenes"))
    assert [*other.rewards] == ["bright", "scenes-strict", "balance"] and other.prompts.name == "scenes-held-out"


def test_other_prompts_are_measured_by_what_is_trained_on_them(policy: Policy) -> None:
    how = measuring.evaluator(read(policy, reward=[bright, dark]))
    assert [*how.rewards] == ["bright", "dark"] and how.prompts.name == LISTED and how.evaluation.images == 60


@pytest.mark.parametrize("name", [*ALGORITHMS])
def test_samples_of_an_evaluation_have_the_guidance_of_training(policy: Policy, name: str) -> None:
    parts = read(policy, algorithm=name)
    assert measuring.evaluator(parts).evaluation.sampler.guidance == parts.algorithm.rollout.guidance


def test_an_evaluation_may_be_given_whole(policy: Policy, tiny: str) -> None:
    parts, own = read(policy), Evaluation(prompts="scenes", rewards=("balance",), images=5)
    how = measuring.evaluator(parts, own)
    assert how.evaluation == own and how.prompts.name == "scenes" and [*how.rewards] == ["balance"]
    assert measuring.evaluator(parts, how) is how
    part = measuring.evaluator(parts, {"images": 7, "prompts": "scenes-held-out", "rewards": ["balance", dark]})
    assert part.evaluation.images == 7 and part.prompts.name == "scenes-held-out"
    assert [*part.rewards] == ["balance", "dark"]
    stranger = Evaluator(flowward.load(tiny, precision="float32"), own, prompts.load("scenes"))
    with pytest.raises(ValueError, match="the evaluator measures another model: give it the policy that is trained"):
        measuring.evaluator(parts, stranger)


def test_a_hook_may_be_an_object(policy: Policy) -> None:
    class Counts:
        def __call__(self, step: object) -> None: ...

    assert Hooks.of(Counts())._hooks[0][0] == "Counts"
