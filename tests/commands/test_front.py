"""Palettes from the command line: train, sample, measure, export, and their fronts beside soups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, same, small

from flowward import prompts
from flowward.cli import main
from flowward.export import trained
from flowward.models import Adapters, load
from flowward.process.policy import MIXTURE, Condition
from flowward.rewards import Sum
from flowward.training.assembly import train

REWARDS = ("jpeg-compressibility", "balance")
FEW = ("--evaluation.images", "6", "--iterations", "1", "--images-per-update", "8", "--group-size", "4",
       "--algorithm.rollout.steps", "2", "--precision", "float32", "--checkpoint-every", "1")  # fmt: skip


@pytest.fixture(scope="module")
def runs(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A palette, and a run of another rank for each of its rewards."""
    where = tmp_path_factory.mktemp("runs")
    many = ("--reward", *REWARDS, "--mix", "advantages", "--palette", "--lora-rank", "2")
    assert main(["train", "--model", tiny, *FEW, *many, "--output", str(where / "palette")]) == 0
    for rank, name in ((1, "jpeg-compressibility"), (3, "balance")):
        one = ("--reward", name, "--lora-rank", str(rank), "--lora-alpha", "5", "--output", str(where / name))
        assert main(["train", "--model", tiny, *FEW, *one]) == 0
    return where


def velocity(policy: Any, mixture: Any = None) -> torch.Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    condition = policy.encode(["a circle", "two rings"])
    if mixture:
        condition = Condition({**condition.tensors, MIXTURE: torch.tensor([mixture] * 2)})
    with torch.no_grad():
        found: torch.Tensor = policy.velocity(x, torch.tensor([0.3, 0.8]), condition)
        return found


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main([str(word) for word in words]) == 2
    return capsys.readouterr().err


def test_a_soup_is_a_palette_whose_corners_are_its_runs(runs: Path) -> None:
    """Adapters of rank 1 and 3 with alpha 5, padded to one rank and one scale; mixed, their changes of W add up."""
    soup = trained.soup({name: str(runs / name) for name in REWARDS})
    assert soup.weights.palette == REWARDS
    base = velocity(load(soup.name, precision="float32"))
    for k, name in enumerate(REWARDS):
        own = trained.load(runs / name)
        torch.testing.assert_close(velocity(soup, [float(j == k) for j in range(2)]), velocity(own))
        assert (velocity(own) - base).abs().max() > 1e-6


def test_an_exported_palette_is_read_again(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = runs / "exported"
    assert main(["export", str(runs / "palette"), "--output", str(out)]) == 0
    assert {path.name for path in out.glob("*.safetensors")} == {
        "jpeg_compressibility.safetensors",
        "balance.safetensors",
    }
    card = (out / "README.md").read_text("utf-8")
    assert "--mixture jpeg-compressibility=0.5 balance=0.5" in card
    before, again = trained.load(runs / "palette"), trained.load(out)
    for w in ([1.0, 0.0], [0.3, 0.7]):
        torch.testing.assert_close(velocity(again, w), velocity(before, w))
    (out / "balance.safetensors").rename(out / "away")
    assert "lacks balance.safetensors, an adapter of its palette" in refused(capsys, "sample", out, "a circle")
    facts = (out / "flowward.json").read_text("utf-8")
    (out / "flowward.json").write_text(facts.replace('"balance.safetensors"', "3"), "utf-8")
    assert "does not name the files of a palette" in refused(capsys, "sample", out, "a circle")
    assert "leave out --merged" in refused(capsys, "export", runs / "palette", "--merged", "--output", runs / "m")


def test_sampling_and_measuring_name_the_mixture(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [str(runs / "palette"), "a circle", "--steps", "2", "--count", "1", "--output", str(runs / "one.png")]
    assert main(["sample", *words, "--mixture", "balance=1", "jpeg-compressibility=3"]) == 0
    assert "at jpeg-compressibility=0.75 balance=0.25" in capsys.readouterr().out
    file = runs / "eval.json"
    words = [str(runs / "palette"), "--images", "6", "--steps", "2", "--json", str(file)]
    assert main(["eval", *words, "--mixture", "balance=1"]) == 0
    (found,) = json.loads(file.read_text("utf-8"))["models"].values()
    assert found["model"]["mixture"] == {"jpeg-compressibility": 0.0, "balance": 1.0}
    assert "unknown adapter 'ballance'; did you mean 'balance'" in refused(
        capsys, "sample", runs / "palette", "a circle", "--mixture", "ballance=1"
    )
    assert "is no palette: leave out --mixture" in refused(
        capsys, "sample", runs / "balance", "a circle", "--mixture", "balance=1"
    )


def test_the_front_of_a_palette_beside_a_soup(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    soup, files = [str(runs / name) for name in REWARDS], [str(runs / "front.json"), str(runs / "front.html")]
    words = ["front", str(runs / "palette"), "--soup", *soup, "--points", "3", "--images", "12", "--steps", "2"]
    assert main([*words, "--json", files[0], "--html", files[1]]) == 0
    printed = capsys.readouterr().out
    assert "palette: hypervolume 0" in printed and "palette against soup:" in printed
    found = json.loads(Path(files[0]).read_text("utf-8"))
    assert [len(each["points"]) for each in found["models"]] == [3, 3] and found["floor"][1] == 0
    assert found["models"][1]["points"][1]["mixture"] == {"jpeg-compressibility": 0.5, "balance": 0.5}
    page = Path(files[1]).read_text("utf-8")
    assert page.count("<circle") == 6 and "http" not in page.replace("http://www.w3.org", "").split("<style>")[0]
    assert "say --overwrite" in refused(capsys, *words, "--json", files[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{runs}/balance"], "has no adapters to mix: name a run with --palette"),
        (["scenes", "--precision", "float32"], "has no adapters to mix"),
        (["{runs}/palette", "--soup", "{runs}/balance"], "a soup needs one run for each of the 2 adapters"),
        (["{runs}/palette", "--soup", "scenes", "{runs}/balance"], "neither a run nor an export|no LoRA adapter"),
        (["{runs}/palette", "--soup", "{runs}/palette", "{runs}/balance"], "is a palette itself"),
        (["{runs}/palette", "--rewards", "scenes", "balance", "jpeg-compressibility"], "too few for the 3 scores"),
        (["{runs}/palette", "--rewards", "scenes"], "needs 2 to 8 scores, not 1"),
        (["{runs}/palette", "--points", "1"], "points must be between 2 and"),
        (["{runs}/palette", "--points", "900"], "are 900 mixtures, and 200 are allowed"),
        (["{runs}/palette", "--floor", "nan", "0"], "--floor needs finite numbers, not nan 0"),
        (["{runs}/palette", "--floor", "0"], "a number for each of jpeg-compressibility, balance, not 1"),
    ],
)
def test_impossible_fronts(runs: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    how = ["--images", "2", "--steps", "2"]
    found = refused(capsys, "front", *[word.format(runs=runs) for word in words], *([] if "--points" in words else how))
    assert any(part in found for part in said.split("|")), found


def test_a_soup_is_read_before_anything_is_measured(
    runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowward.export.grids.measured", lambda *given: pytest.fail("measured"))
    soup = ("--soup", "scenes", str(runs / "balance"))
    assert refused(capsys, "front", str(runs / "palette"), *soup, "--images", "2", "--steps", "2")


def test_a_palette_of_a_users_own_rewards_is_read_again(tiny: str, tmp_path: Path) -> None:
    """Trained from Python: config.yaml cannot name the rewards, so the checkpoint does."""
    policy = load(tiny, None, "float32", adapters=Adapters(2, palette=("bright", "same")))
    reward = Sum((("bright", 1.0, bright), ("same", 1.0, same)))
    run = small(mix="advantages", output=tmp_path / "run", iterations=1, checkpoint_every=1)
    for _ in train(algorithm(), policy, reward, prompts.of("mine", TEXTS), run):
        pass
    again = trained.load(tmp_path / "run")
    assert again.weights.palette == ("bright", "same")
    torch.testing.assert_close(velocity(again, (0.2, 0.8)), velocity(policy, (0.2, 0.8)))


def test_adapters_of_different_models_are_no_soup(runs: Path, tiny: str) -> None:
    one = load(tiny, 2, "float32")
    other = load("scenes", 2, "float32")
    from flowward.export.soups import joined

    with pytest.raises(ValueError, match="was trained on another model"):
        joined([("a", one), ("b", other)], lambda adapters: load(tiny, adapters=adapters))
    with pytest.raises(ValueError, match="no LoRA adapter, since all weights were trained"):
        joined([("a", load(tiny, precision="float32"))], lambda adapters: load(tiny, adapters=adapters))
    with pytest.raises(ValueError, match="2 to 8 of them, not 1"):
        joined([("a", one)], lambda adapters: load(tiny, adapters=Adapters(adapters.rank, palette=adapters.palette)))
