"""What is written is JSON to every reader, and what older versions wrote can still be read."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from flowward.evaluation import outcome
from flowward.evaluation.comparison import differences
from flowward.evaluation.measurement import Measurement, read, to_json
from flowward.pages import evaluation as evaluation_page
from flowward.pages import report
from flowward.system import checkpoint, strict_json
from flowward.training.folder import RunFolder
from flowward.training.guards import Watch

BAD = {"a": math.nan, "b": [math.inf, (-math.inf, 1.5)], "c": {"d": "NaN", "e": None, "f": True, "g": 7}}


def strict(text: str) -> Any:
    return json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))


def test_what_is_not_finite_is_null_and_nothing_else_changes() -> None:
    assert strict(strict_json.dumps(BAD)) == {**BAD, "a": None, "b": [None, [None, 1.5]]}
    plain = {"x": 0.1, "y": [1, "é"], "z": {}}
    assert strict_json.dumps(plain, 2) == json.dumps(plain, indent=2) and strict_json.loads(json.dumps(plain)) == plain


def test_older_files_with_other_words_are_read() -> None:
    assert strict_json.loads('{"low": -Infinity, "high": Infinity, "std": NaN}') == dict.fromkeys(
        ("low", "high", "std")
    )


def test_a_run_folder_is_strict_and_reads_older_ones(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path / "run", {})
    run.metrics.write_text('{"iteration": 1, "reward_std": NaN}\n')  # as before
    run.append({"iteration": 2, "ratio_max": math.inf})
    run.forget_after(2)
    lines = [strict(line) for line in run.metrics.read_text().splitlines()]
    assert lines == run.lines() == [{"iteration": 1, "reward_std": None}, {"iteration": 2, "ratio_max": None}]


def test_a_checkpoint_keeps_what_is_not_finite(tmp_path: Path) -> None:
    state = {"a": [math.inf, -math.inf, math.nan, 1.5], "b": torch.ones(2)}
    checkpoint.save(tmp_path / "x.safetensors", state)
    found = checkpoint.load(tmp_path / "x.safetensors")["a"]
    assert found[:2] == [math.inf, -math.inf] and math.isnan(found[2]) and found[3] == 1.5


def measured(name: str, score: float, guard: float = 0.5) -> Measurement:
    """One image."""
    settings = {
        "model": {"name": name}, "prompts": "mine", "images": 1, "seed": 0, "guard": ["sharp"],
        "rewards": {"bright": {"kind": "b", "option": math.inf}},
    }  # fmt: skip
    scores = {"bright": torch.tensor([score]), "sharp": torch.tensor([guard])}
    return Measurement(name, settings, ("a dog",), ("all",), scores, frozenset())


def test_measurements_of_one_image_are_strict_and_come_back(tmp_path: Path) -> None:
    found = [measured("a", 0.25), measured("b", 0.5)]
    text = to_json(found, [each.to_dict() for each in differences(found)])
    overall = strict(text)["models"]["a"]["scores"]["bright"]["overall"]
    assert overall == {"mean": 0.25, "low": None, "high": None, "n": 1, "over_prompts": None, "prompts": 1}
    older = text.replace('"low": null', '"low": -Infinity').replace('"high": null', '"high": Infinity')
    assert older != text
    for written in (text, older):
        (tmp_path / "x.json").write_text(written)
        assert [each.summary() for each in read(tmp_path / "x.json")] == [strict_summary(each) for each in found]
    Watch(tmp_path).look(0, found[0])
    strict((tmp_path / "evaluation.json").read_text())


def strict_summary(each: Measurement) -> dict[str, Any]:
    return strict(strict_json.dumps(each.summary()))


def test_the_page_of_an_evaluation_shows_a_dash() -> None:
    found = [measured("one", 0.25), measured("other", 0.5)]
    for some in (found[:1], found):
        said = evaluation_page.of(some, differences(some))
        seen = re.sub(r"<(script|style).*?</\1>", "", said, flags=re.DOTALL)
        assert "0.250 [–]" in seen and "inf," not in seen and "Infinity" not in seen


def test_the_page_of_an_older_run_shows_a_dash(tmp_path: Path) -> None:
    """One whose lines hold infinite ends, in all of its evaluations or in some."""
    ends = {"nothing": '"low": -Infinity, "high": Infinity', "some": '"low": 0.1, "high": 0.4'}
    for name, first in ends.items():
        run = RunFolder.create(tmp_path / name, {"model": "scenes"})
        for iteration, end in ((0, first), (1, ends["nothing"])):
            score = f'{{"overall": {{"mean": 0.25, {end}, "n": 1}}, "categories": {{}}}}'
            with run.metrics.open("a") as file:
                file.write(f'{{"iteration": {iteration}, "evaluation": {{"scores": {{"bright": {score}}}}}}}\n')
        said = report.write(run.path).read_text("utf-8")
        seen = re.sub(r"<(script|style).*?</\1>", "", said, flags=re.DOTALL)
        assert "0.250 [–]" in seen and "inf]" not in seen and "0.250&nbsp;[" not in seen
        assert "one image has no interval" in outcome.sentence(outcome.of(run.lines()))
