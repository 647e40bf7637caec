"""What `auto` means on a machine, and that a run keeps to it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from flowward import models
from flowward.cli import main
from flowward.system import precision
from flowward.training.folder import RunFolder


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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert precision.native() == precision.resolve("auto") == models.load(tiny).precision == native
    assert precision.resolve("bf16") == models.load(tiny, precision="bf16").precision == "bf16"


def test_a_run_goes_on_in_the_precision_that_it_began_with(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    run = tmp_path / "run"
    words = ["train", "--model", tiny, "--iterations", "1", "--images-per-update", "24", "--output", str(run)]
    assert main([*words, "--evaluation.images", "6", "--microbatch", "48"]) == 0
    assert RunFolder.open(run).config()["precision"] == "bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    assert main(["train", "--resume", str(run), "--iterations", "2"]) == 0
    assert RunFolder.open(run).config()["precision"] == "bf16"
