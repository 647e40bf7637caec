"""flowward advise, as a stranger reads it."""

from __future__ import annotations

from typing import Any

import pytest
from leaderboards import study
from tiny_pipelines import tiny

from flowward.cli import main
from flowward.studies import sizes
from flowward.studies.sizes import Line, Memory, Size


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def said(words: str, found: dict[str, Any], columns: int = 100) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setattr("flowward.studies.shipped.leaderboard", lambda: found)
        assert main(["advise", *words.split()]) == 0
        return capsys.readouterr().out

    return said


def labels(text: str) -> list[str]:
    return [line[:17].strip() for line in text.splitlines() if line[:1].strip()]


def test_the_built_in_model_on_a_laptop(printed: Any) -> None:
    text = printed("--model scenes --reward scenes --gpu none", study())
    assert labels(text) == ["Algorithm", "Evidence", "Second choice", "Settings", "Batch", "Memory", "Time"]
    assert "\nSecond choice    diffusion_nft 61.0 % [58.5, 63.5]; awm is ahead by +1.0 points" in text
    assert "\nMemory           less than 1 GB, with or without a GPU\n" in text
    assert text.endswith("\n\n  # start it\n  flowward train --algorithm awm --reward scenes\n")
    assert all(len(line) <= 100 for line in text.splitlines())
    assert len(text.splitlines()) <= 16


def test_a_real_model_on_a_card(printed: Any) -> None:
    text = printed("--model stabilityai/stable-diffusion-3.5-medium --reward ocr --gpu 4090", {})
    said = " ".join(text.split())
    assert "Evidence none: this version has no leaderboard" in said
    assert "Settings recipe sd3.5-medium/advantageflow-ocr (preset paper)" in said
    assert "Memory 16.9 of 21.6 GB (nine tenths of RTX 4090), no options needed; counted as by flowward memory" in said
    assert "Time about " in said and "an estimate from SD3.5 Medium on an H200, not measured on this card" in said
    assert text.endswith("  flowward train --config sd3.5-medium/advantageflow-ocr\n")


def test_a_narrow_terminal_breaks_lines_between_words(printed: Any) -> None:
    text = printed("--model scenes --reward scenes-net --gpu none", study(), 60)
    assert "Faster, riskier" in labels(text)
    assert max(map(len, text.splitlines())) <= 70  # a path is not broken


def test_a_folder_is_counted_from_its_configuration(
    printed: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny("StableDiffusion3Pipeline").save_pretrained(tmp_path)
    asked = list[str]()
    memory = {"": Memory(Line(5, 0.1), Line(5, 1))}

    def counted(folder: str) -> Size:
        asked.append(folder)
        return Size(512, 16, True, 1.0, 2.0, memory)

    monkeypatch.setattr(sizes, "counted", counted)
    said = " ".join(printed(f"--model {tmp_path} --reward ocr --gpu 24GB", {}).split())
    assert asked == [str(tmp_path)]
    assert "Memory 21.0 of 21.6 GB" in said  # 16 of 128 points


def test_counting_reads_a_configuration(tmp_path: Any) -> None:
    """Memory grows with rows, less of it with checkpointing; a pass and its backward pass are more than one."""
    tiny("StableDiffusion3Pipeline").save_pretrained(tmp_path)
    ways = {name: own for name, own in sizes.WAYS.items() if "quantise" not in own}
    found = sizes.counted(str(tmp_path), 32, ways)
    plain, kept = found.memory.values()
    assert plain.training.each > kept.training.each > 0 and plain.sampling.each > 0
    assert found.doubles and found.both >= found.forward >= 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--reward scenes", "gpu"),
        ("--gpu none", "reward"),
        ("--reward scenes --gpu H99", "unknown --gpu 'H99'"),
        ("--reward scenes --gpu none --hours 0", "hours must be a positive number"),
        ("--reward scenes --gpu none --model nobody/nothing", "nothing is downloaded for advice"),
    ],
)
def test_what_is_missing_or_impossible_is_one_sentence(
    capsys: pytest.CaptureFixture[str], words: str, said: str
) -> None:
    assert main(["advise", *words.split()]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
