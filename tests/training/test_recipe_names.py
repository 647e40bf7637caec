"""A recipe by its name, from any folder; a file of the user comes first."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flowward.training import recipes


@pytest.mark.parametrize("name", ["sd3.5-medium/flow_grpo-ocr", "recipes/sd3.5-medium/flow_grpo-ocr.yaml"])
def test_a_name_means_a_recipe_anywhere(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = recipes.located(name)
    assert found.is_absolute() and found.parts[-3:] == ("recipes", "sd3.5-medium", "flow_grpo-ocr.yaml")
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).touch()
    assert recipes.located(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("sd3.5-medium/flow_grpo-orc.yaml", "did you mean the recipe sd3.5-medium/flow_grpo-ocr?"),
        ("my/own.yaml", "flowward list recipes lists the recipes"),
    ],
)
def test_what_is_neither_is_told(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"there is no config file {name}; {hint}")):
        recipes.located(name)
