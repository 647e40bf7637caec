"""How much of a prompt a model reads: told where prompts are cut, and where two become one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from program import BUDGET
from tiny_policies import policy

from flowward.cli import main
from flowward.models.families import FAMILIES
from flowward.prompts import Edit, Prompt

SD3 = "StableDiffusion3Pipeline"
TOKENS = {"Lumina2Pipeline": 54, "AceStepPipeline": 62, "NucleusMoEImagePipeline": 96}  # with what is around a prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_prompts_are_told_to_be_one_where_their_encodings_are(name: str, tmp_path: Path) -> None:
    free = FAMILIES[name].fixed_text
    one = policy(name, **({} if free else {"text_tokens": TOKENS.get(name, 20)}))
    Image.fromarray(np.zeros((32, 32, 3), np.uint8)).save(tmp_path / "x.png")
    reported = set()
    for words in (1, *range(5, 22), 30, 90):
        texts = [f"{'a ' * words}{last}" for last in ("cat", "dog")]
        asked: list[Prompt] = [Edit(text, tmp_path / "x.png") for text in texts] if one.edits else list(texts)
        with torch.no_grad():
            rows = one.family.encode(asked)
        same = all(torch.allclose(*tensor, rtol=0, atol=1e-5) for tensor in rows.values())
        said = one.remarks_on(asked)
        assert any("cannot tell them apart" in each for each in said) == same
        reported.add((same, any("2 of 2 prompts are longer" in each for each in said)))
    assert reported >= ({(False, False)} if free else {(False, False), (True, True)})


def test_the_sentences() -> None:
    one, long = policy(SD3), "a small red circle on the left of" + 58 * " a large blue square ,"
    dog, cat = (f"{long} a {animal}" for animal in ("dog", "cat"))
    cut, same = one.remarks_on([dog, cat, dog, "a red circle"])
    begin, end = "a small red circle on the left of a", "quare , a large blue square , a "
    assert cut == (
        "2 of 3 prompts are longer than the model reads, so their ends are cut: CLIP reads 77 tokens (2 prompts are "
        f"longer), T5 reads 256 tokens (2 prompts are longer). The first one is '{begin} ... {end}dog'; "
        "shorten them, or raise --text-tokens"
    )
    assert same == (
        "1 prompt is read like another one, so the model cannot tell them apart: "
        f"'{begin} ... {end}dog' and '{begin} ... {end}cat'; change or remove one of them"
    )
    assert one.remarks_on(["a red circle", "a blue square"]) == []
    (alone,) = policy(SD3, text_tokens=512).remarks_on(["a " * 100])
    assert "CLIP reads 77 tokens (1 prompt is longer). The first" in alone and "--text-tokens" not in alone


def test_prompts_are_told_apart_by_their_source() -> None:
    one = policy("FluxKontextPipeline")
    assert one.remarks_on([Edit("a cat", Path("a.png")), Edit("a cat", Path("b.png"))]) == []


def test_a_run_tells_it_before_it_starts(
    saved: Path, tmp_path: Path, elsewhere: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowward.models.diffusers.CACHE", tmp_path / "cache")
    file, output = tmp_path / "two.txt", tmp_path / "run"
    file.write_text("a red circle\na blue square\n")
    reward = ["--reward", "jpeg-compressibility", "--evaluation.rewards", "jpeg-compressibility"]
    words = ["--model", saved, "--size", 32, 32, "--precision", "float32", "--lora-rank", 2, "--iterations", 1]
    words += ["--prompts", file, "--evaluation.prompts", file, "--text-tokens", 3, "--output", output]
    budget = [*BUDGET[: BUDGET.index("--evaluation.rewards")], "--checkpoint-every", "9", "--rollout-batch", "8"]
    assert main(["train", *budget, *reward, *map(str, words)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert said.count("warning: 2 of 2 prompts are longer than the model reads") == 1
    assert "T5 reads 3 tokens (2 prompts are longer)" in said and "or raise --text-tokens" in said
