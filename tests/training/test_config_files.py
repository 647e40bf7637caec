"""Config files that build on each other: a later one wins, a base comes first, and a circle is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from program import Refused

from flowward.commands import train
from flowward.training import config, config_files


def written(tmp_path: Path, **files: str) -> list[Path]:
    found = [tmp_path / f"{name}.yaml" for name in files]
    for file, text in zip(found, files.values(), strict=True):
        file.write_text(text)
    return found


def test_a_later_file_wins_key_by_key(tmp_path: Path) -> None:
    files = written(
        tmp_path,
        a="run: {iterations: 5, seed: 1}\nreward: [scenes, balance]\n"
        "algorithm: {name: awm, k_ref: 0.5, rollout: {steps: 4}}",
        b="run: {seed: 2}\nreward: {balance: 2}\nalgorithm: {rollout: {shift: 2}}",
    )
    found = config.from_dict(config_files.read(files))
    assert (found.run.iterations, found.run.seed, found.reward) == (5, 2, ("balance=2",))
    how = found.algorithm
    assert (how.k_ref, how.rollout.steps, how.rollout.shift) == (0.5, 4, 2)
    assert config.from_dict(config_files.read(files[::-1])).run.seed == 1


def test_another_algorithm_brings_its_own_settings(tmp_path: Path) -> None:
    files = written(tmp_path, a="algorithm: {name: awm, k_ref: 0.5}", b="algorithm: {name: flow_grpo, beta: 0.1}")
    assert config.from_dict(config_files.read(files)).algorithm.beta == 0.1


def test_a_base_comes_first_and_is_relative_to_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").mkdir()
    written(tmp_path / "recipes", common="run: {iterations: 5, seed: 1}", middle="base: common.yaml\nrun: {seed: 2}")
    (mine,) = written(tmp_path, mine="base: recipes/middle.yaml\nrun: {group_size: 6}")
    monkeypatch.chdir("/")
    found = config.from_dict(config_files.read([mine]))
    assert (found.run.iterations, found.run.seed, found.run.group_size) == (5, 2, 6)
    settings, _ = train.chosen(["--config", str(mine), "--seed", "3"])
    assert (settings.run.iterations, settings.run.seed, settings.run.group_size) == (5, 3, 6)


def test_several_files_on_the_command_line(tmp_path: Path) -> None:
    a, b = map(str, written(tmp_path, a="run: {iterations: 5, seed: 1}", b="run: {seed: 2}"))
    for words in (["--config", a, "--config", b], [f"--config={a}", f"--config={b}"]):
        settings, _ = train.chosen(words)
        assert (settings.run.iterations, settings.run.seed) == (5, 2)


def test_circles_and_missing_bases_are_named(tmp_path: Path, elsewhere: None, refused: Refused) -> None:
    a, b, c, d, e = written(
        tmp_path, a="base: b.yaml", b="base: ./a.yaml", c="base: c.yaml", d="base: nowhere.yaml", e="base: [a.yaml]"
    )
    assert f"a config file cannot be its own base: {a} -> {b} -> {a}" in refused("train", "--config", a)
    assert f"cannot be its own base: {c} -> {c}" in refused("train", "--config", c)
    said = refused("train", "--config", d)
    assert "there is no config file" in said and "nowhere.yaml" in said and f"(base of {d})" in said
    assert "base must be the path of a config file, not ['a.yaml']" in refused("train", "--config", e)


@pytest.mark.parametrize(
    ("words", "scores"),
    [
        ("", ("scenes-strict", "balance")),
        ("--reward scenes", ("scenes-strict", "balance")),
        ("--reward jpeg-compressibility", ("jpeg-compressibility", "scenes-strict", "balance")),
        ("--reward balance=2 scenes", ("balance", "scenes", "scenes-strict")),
        ("--reward jpeg-compressibility --evaluation.rewards balance", ("balance",)),
        ("--model owner/name --reward ocr=0.5 pickscore", ("ocr", "pickscore")),
        ("--config file.yaml", ("balance", "scenes-strict")),
        ("--config own.yaml --reward jpeg-compressibility", ("scenes",)),
    ],
)
def test_evaluation_follows_the_reward(words: str, scores: tuple[str, ...], elsewhere: None) -> None:
    Path("file.yaml").write_text("reward: balance")
    Path("own.yaml").write_text("reward: balance\nevaluation: {rewards: [scenes]}")
    assert train.chosen(words.split())[0].evaluation.rewards == scores
