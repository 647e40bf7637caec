"""What `auto` means on a machine, that a run keeps to it, and that no test asks the machine unnoticed."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from processors import MACHINE
from processors import VARIABLE as SWITCH
from program import alone

from flowward import models
from flowward.cli import main
from flowward.scenes.pretrain import Pretrain, pretrain
from flowward.system import checkpoint, precision
from flowward.training.folder import RunFolder

ASKED = "from flowward.system import precision; print(precision.native())"


@pytest.mark.parametrize(
    ("able", "native"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16"),
        ({"avx512_bf16": True}, "bf16"),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"architecture": "arm64"}, "float32"),
    ],
)
def test_bf16_where_the_processor_multiplies_it(
    able: dict[str, object], native: str, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(precision.VARIABLE)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision.native() == precision.resolve("auto") == models.load(tiny).precision == native
    assert precision.resolve("bf16") == models.load(tiny, precision="bf16").precision == "bf16"
    assert precision.resolve("auto", "cuda") == "bf16"


@pytest.mark.parametrize("answer", ["bf16", "float32"])
@pytest.mark.parametrize("able", [True, False])
def test_the_environment_answers_in_place_of_the_processor(
    answer: str, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For `auto` on a CPU alone: what is asked for by name stays."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": able})
    monkeypatch.setenv(precision.VARIABLE, answer)
    assert precision.native() == precision.resolve("auto") == answer
    assert [precision.resolve(name) for name in ("bf16", "float32")] == ["bf16", "float32"]
    assert precision.resolve("auto", "cuda") == "bf16"


def test_a_word_that_is_no_precision_ends_in_a_sentence(
    tiny: str, refused: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(precision.VARIABLE, "fp16")
    assert (
        refused("sample", tiny, "a circle") == f"the environment variable {SWITCH} must be bf16 or float32, not 'fp16'"
    )


def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(precision.VARIABLE, "bf16")
    run = tmp_path / "run"
    words = ["train", "--model", tiny, "--iterations", "1", "--images-per-update", "24", "--output", str(run)]
    assert main([*words, "--evaluation.images", "6", "--microbatch", "48"]) == 0
    assert RunFolder.open(run).config()["precision"] == "bf16"
    monkeypatch.setenv(precision.VARIABLE, "float32")
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    assert RunFolder.open(run).config()["precision"] == "bf16"


def test_so_does_pretraining(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit: the other half on another processor is what one processor would have made of it."""
    size = {"autoencoder_steps": 22, "autoencoder_batch": 1, "save_every": 7}  # a line at step 20, and at 22

    def made(name: str, *processors: str) -> dict[str, torch.Tensor]:
        for part, answer in enumerate(processors):
            monkeypatch.setenv(precision.VARIABLE, answer)
            lines = pretrain(Pretrain(tmp_path / name, **size))  # type: ignore[arg-type]
            while next(lines)["step"] < (22 if part == len(processors) - 1 else 20):
                pass
            lines.close()  # it is saved as it was after step 14, or 21
        state: dict[str, Any] = checkpoint.load(tmp_path / name / "autoencoder.safetensors")
        assert state["step"] == 21 and state["precision"] == processors[0]
        return dict(state["weights"])

    whole, parts, other = made("a", "bf16"), made("b", "bf16", "float32"), made("c", "float32")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
    with pytest.raises(ValueError, match="was begun with --precision bf16, not float32: leave it out"):
        next(pretrain(Pretrain(tmp_path / "b", precision="float32", **size)))  # type: ignore[arg-type]


# The switch of the tests (processors.py)


def test_a_test_without_the_mark_cannot_ask_the_processor() -> None:
    """Nor can what it starts."""
    with pytest.raises(ValueError, match="name a precision, or give the test the mark `processor`"):
        precision.native()
    with pytest.raises(subprocess.CalledProcessError) as failed:
        alone(ASKED)
    assert "the mark `processor`" in failed.value.stderr


@pytest.mark.processor
def test_a_test_with_it_stands_for_the_processor_that_the_switch_names() -> None:
    assert os.environ.get(precision.VARIABLE) == MACHINE
    assert MACHINE in (None, precision.native()) and precision.native() in ("bf16", "float32")
    assert alone(ASKED)[0].strip() == precision.native()


@pytest.fixture(scope="module")
def shared() -> str:
    with pytest.raises(ValueError, match="the mark `processor`"):
        precision.native()
    return os.environ[precision.VARIABLE]


@pytest.mark.processor
def test_what_tests_share_does_not_depend_on_which_comes_first(shared: str) -> None:
    assert "name a precision" in shared and os.environ.get(precision.VARIABLE) == MACHINE


def test_stored_numbers_are_compared_in_a_precision_that_is_named() -> None:
    """No module with a test that leaves it to the processor reads files from tests/data."""
    files = {path: path.read_text("utf-8") for path in Path(__file__).parents[1].rglob("test_*.py")}
    stored = {path.name for path, text in files.items() if re.search(r'/ "data"', text)} - {Path(__file__).name}
    assert {"test_reference_scores.py", "test_record.py", "test_older_files.py"} <= stored
    assert not [path for path, text in files.items() if path.name in stored and "mark.processor" in text]


def test_the_switch_is_the_variable_of_the_product() -> None:
    assert precision.VARIABLE == SWITCH
