"""flowward list and flowward algorithms: tables without torch that agree with the code."""

from __future__ import annotations

import re
import shlex
from typing import Any, get_args

import pytest
from program import alone

from flowward import prompts
from flowward.algorithms import ALGORITHMS
from flowward.algorithms.presets import PRESETS, Family, facts
from flowward.cli import main
from flowward.commands import algorithms
from flowward.commands import list as lists
from flowward.evaluation.evaluate import Evaluation
from flowward.evaluation.suites import SUITES
from flowward.models.families import FAMILIES
from flowward.rewards import REWARDS
from flowward.system import tables
from flowward.training import config, config_files, recipes

EVERY = [
    "list",
    *(f"list {name}" for name in lists.LISTS),
    "algorithms",
    *(f"algorithms {name}" for name in ALGORITHMS),
]


def printed(capsys: pytest.CaptureFixture[str], words: str, monkeypatch: pytest.MonkeyPatch, width: int = 200) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    capsys.readouterr()
    assert main(shlex.split(words)) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("words", ["list", "list rewards", "list recipes", "algorithms", "algorithms flow_grpo"])
def test_tables_are_quick_and_import_no_torch(words: str) -> None:
    code = "import sys; from flowward.cli import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    out, seconds = alone(code, *shlex.split(words))
    assert seconds < 2
    assert out.splitlines()[-1] == "False"


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("words", EVERY)
def test_tables_fit_the_terminal(
    capsys: pytest.CaptureFixture[str], words: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is cut off; a line that is too long is a single name."""
    out = printed(capsys, words, monkeypatch, width)
    assert "…" not in out
    assert all(len(line) <= width or len(line.split()) <= 2 for line in out.splitlines())


def test_bare_list_names_the_lists(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = printed(capsys, "list", monkeypatch)
    assert re.findall(r"flowward list (\w+)", out) == ["rewards", "prompts", "suites", "recipes", "models", "presets"]


def test_the_table_of_rewards_is_that_of_the_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = tables.load(tables.PACKAGE / "rewards" / "table.yaml")
    assert list(found) == list(REWARDS)
    for name, own in found.items():
        assert own.keys() - {"scores"} == {"what", "needs"}
        kind = REWARDS[name]
        model = getattr(kind, "model", None)  # of the networks of its own
        assert not isinstance(model, str) or not model or name.startswith("geneval") or model in own["needs"], name
    out = printed(capsys, "list rewards", monkeypatch)
    assert all(re.search(rf"^ {name} ", out, re.MULTILINE) for name in REWARDS)
    assert re.search(r"^ ocr .*pip install 'flowward\[rewards\]'", out, re.MULTILINE)


def test_the_table_of_prompts_is_that_of_the_code() -> None:
    found = tables.load(tables.PACKAGE / "prompts" / "table.yaml")
    assert list(found) == list(prompts.BUILT_IN)
    assert {name: own["prompts"] for name, own in found.items()} == {name: len(prompts.load(name)) for name in found}


def test_the_table_of_suites_is_that_of_the_code(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert Evaluation.images == lists.IMAGES
    out = printed(capsys, "list suites", monkeypatch)
    for name, suite in SUITES.items():
        images = len(suite.of(Evaluation()).chosen(prompts.load(suite.prompts)))
        row = next(line for line in out.splitlines() if line.startswith(f" {name} "))
        assert suite.prompts in row and ", ".join(suite.rewards) in row and f" {images:,} " in row


def test_the_table_of_models_is_that_of_the_code() -> None:
    found = tables.load(tables.PACKAGE / "models" / "families" / "table.yaml")
    assert {own["pipeline"] for own in found} == set(FAMILIES)
    for own in found:
        family = FAMILIES[own["pipeline"]]
        notes = own.get("notes", "")
        assert (family.sources[-1] > 0) == ("edits images" in notes or "from an image" in notes)
        assert all(f"pip install {package}" in own["notes"] for package in family.needs)


def test_the_table_of_recipes_counts_as_training_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = printed(capsys, "list recipes", monkeypatch)
    files = recipes.every()
    assert len(files) > 50
    for file in files.values():
        settings = config.from_dict(config_files.read([file]))
        rows = [line for line in out.splitlines() if line.startswith(f" {file.stem} ")]
        assert any(f" {settings.run.images:,}" in row and settings.reward[0] in row for row in rows), file
        assert settings.model in out


def test_the_table_of_presets_counts_as_training_does(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = re.split(r"^(\w+)$", printed(capsys, "list presets", monkeypatch), flags=re.MULTILINE)
    for name, part in zip(parts[1::2], parts[2::2], strict=True):
        for preset in PRESETS[name]:
            images = config.settings_type(name, preset)().run.images
            assert re.search(rf"^ {preset} .* {images:,}$", part, re.MULTILINE), (name, preset)
    assert parts[1::2] == list(ALGORITHMS)


def test_the_table_of_algorithms(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = printed(capsys, "algorithms", monkeypatch)
    heads = {family: out.index(f"\n{family.capitalize()}: ") for family in get_args(Family)}
    for name in ALGORITHMS:
        own = facts(name)
        place = out.index(f"\n {name} ")
        assert max((head, family) for family, head in heads.items() if head < place)[1] == own.family
        row = out[place:].splitlines()[1]
        assert own.when in row or own.when.split(",")[0] in row
        assert row.split()[1:4] == [f"{cost:g}" for cost in (own.cost.sampling, own.cost.training, own.cost.copies)]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_the_page_of_an_algorithm(
    capsys: pytest.CaptureFixture[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value in its table is that of the preset's settings, defaults too; equal presets share a column."""
    out = printed(capsys, f"algorithms {name}", monkeypatch, 400)
    assert f"arXiv:{facts(name).arxiv}" in out and f"flowward train --algorithm {name} --preset " in out
    lines = [re.split(r" {2,}", line.strip()) for line in out.splitlines()]
    heads = next(line[1:] for line in lines if line[0] == "option")
    rows = {line[0]: line[1:] for line in lines if line[0].startswith("--") and len(line) > 1}
    assert len(rows) > 3
    for number, preset in enumerate(heads):
        settings = config.settings_type(name, preset)()
        for flag, values in rows.items():
            found: Any = settings
            for part in flag[2:].replace("-", "_").split("."):
                found = getattr(found, part) if hasattr(found, part) else getattr(settings.run, part, "-")
            assert values[number] == algorithms._value(found), (preset, flag)
