"""A suite is prompts, rewards and numbers; flags win over it, and what is missing of it is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flowward.cli import main
from flowward.evaluation import suites
from flowward.evaluation.evaluate import Evaluation
from flowward.evaluation.suites import SUITES, Suite
from flowward.process.rollout import Sampler


def test_the_suite_of_scenes_is_the_default_evaluation() -> None:
    assert SUITES["scenes"].of(Evaluation()) == Evaluation()


@pytest.mark.parametrize("name", SUITES)
def test_suites_leave_how_images_are_drawn_to_the_user(name: str) -> None:
    own = Evaluation(seed=3, batch=5, weights="ema", sampler=Sampler(4, guidance=2.0), guard=("balance",))
    found = suites.load(name).of(own)
    assert (found.seed, found.batch, found.weights, found.sampler, found.guard) == (3, 5, "ema", own.sampler, own.guard)
    assert (found.prompts, found.rewards) == (SUITES[name].prompts, SUITES[name].rewards)
    assert len(set(found.rewards)) == len(found.rewards) > 0


def test_unknown_suites_and_files() -> None:
    with pytest.raises(ValueError, match="unknown suite 'genevl'; did you mean 'geneval'"):
        suites.load("genevl")
    for name in ("mine.txt", "hf:owner/name", "held-out:mine.jsonl"):
        assert suites.load(name) == Suite(name, ())


def measured(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> tuple[int, dict, str]:
    file = tmp_path / "found.json"
    code = main(["eval", *words, "--steps", "1", "--json", str(file), "--overwrite"])
    ((_, found),) = json.loads(file.read_text())["models"].items() if code == 0 else ((None, {}),)
    return code, found, capsys.readouterr().err


@pytest.mark.processor
def test_flags_win(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "small", Suite("scenes", ("balance", "scenes-strict"), images=6))
    _, found, _ = measured(capsys, tmp_path, tiny, "--suite", "small")
    assert (found["prompts"], found["images"], list(found["scores"])) == ("scenes", 6, ["balance", "scenes-strict"])
    words = [
        "--suite=small",
        "--prompts",
        "scenes-held-out",
        "--rewards",
        "scenes",
        "--guard",
        "balance",
        "--images",
        "7",
    ]
    _, found, _ = measured(capsys, tmp_path, tiny, *words)
    assert (found["prompts"], found["images"], list(found["scores"])) == ("scenes-held-out", 7, ["scenes", "balance"])
    assert found["guard"] == ["balance"]


@pytest.mark.processor
def test_a_file_is_a_suite_once_it_has_rewards(capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.txt"
    file.write_text("a circle\ntwo rings\n")
    words = [tiny, "--suite", str(file), "--images-per-prompt", "3"]
    code, _, said = measured(capsys, tmp_path, *words)
    assert code == 2 and "name at least one reward with --rewards, the headline first" in said
    _, found, _ = measured(capsys, tmp_path, *words, "--rewards", "balance")
    assert (found["prompts"], found["images"]) == ("mine.txt", 6)
    assert found["scores"]["balance"]["overall"]["prompts"] == 2


def test_a_real_model_needs_a_suite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text("{}")
    code, _, said = measured(capsys, tmp_path, str(tmp_path))
    assert code == 2 and "name a --suite, or --prompts and --rewards, to measure" in said


def test_missing_parts_are_named(
    capsys: pytest.CaptureFixture[str], tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SUITES, "small", Suite("scenes-held-ot", ("balance",)))
    assert "unknown prompt set 'scenes-held-ot'; did you mean 'scenes-held-out'" in measured(
        capsys, tmp_path, tiny, "--suite", "small"
    )[2]  # fmt: skip
    monkeypatch.setitem(SUITES, "small", Suite("scenes", ("balanc",)))
    assert "unknown reward 'balanc'; did you mean 'balance'" in measured(capsys, tmp_path, tiny, "--suite", "small")[2]
    assert "options for reward 'aesthetic', but it is not used" in measured(
        capsys, tmp_path, tiny, "--reward-options", "aesthetic.device=cpu"
    )[2]  # fmt: skip
    assert "'scenes-strict' is the headline" in measured(capsys, tmp_path, tiny, "--guard", "scenes-strict")[2]
