"""The optimisers of a run. The one in 8 bits is tested where bitsandbytes is installed (.ci/run)."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from resumed_runs import BUDGET, assert_same_run, train
from tiny_runs import bright, small, snapshot, trainer

from flowward import models
from flowward.learning.optimisers import OPTIMISERS
from flowward.training.run import Run

eight_bits = pytest.mark.skipif(not importlib.util.find_spec("bitsandbytes"), reason="bitsandbytes is not installed")


@eight_bits
def test_8_bits_are_near_32_and_smaller(tiny: str) -> None:
    """After three iterations the weights have gone nearly the same way; the moments take a good quarter."""
    start, found, bytes_of = snapshot(models.load(tiny, None, "float32")), {}, {}
    for name in OPTIMISERS:
        one = trainer(tiny, optimiser=name, warmup=0)
        for _ in range(3):
            one.step()
        found[name] = torch.cat([(tensor - start[key]).flatten() for key, tensor in snapshot(one.policy).items()])
        moments = [
            value
            for state in one.optimiser.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.numel() > 256  # without tables and scales
        ]
        bytes_of[name] = sum(value.numel() * value.element_size() for value in moments)
    exact, coarse = found["adamw"], found["adamw8bit"]
    assert torch.nn.functional.cosine_similarity(exact, coarse, dim=0) > 0.98
    assert bytes_of["adamw8bit"] < 0.5 * bytes_of["adamw"]  # many tensors of this small model are too small for 8 bits


@eight_bits
def test_a_run_in_8_bits_resumes_as_if_it_had_never_stopped(tiny: str, tmp_path: Path) -> None:
    how = [*BUDGET, "--model", tiny, "--optimiser", "adamw8bit", "--evaluate-every", "2", "--precision", "float32"]
    train(*how, "--output", tmp_path / "whole", "--iterations", "4")
    train(*how, "--output", tmp_path / "halves", "--iterations", "2")
    train("--resume", tmp_path / "halves", "--iterations", "4")
    assert_same_run(tmp_path / "whole", tmp_path / "halves")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_what_is_not_installed_is_said_in_a_sentence(tiny: str) -> None:
    with pytest.raises(ValueError, match=r"adamw8bit needs bitsandbytes: pip install 'flowward\[quantise\]'"):
        trainer(tiny, reward=bright, optimiser="adamw8bit")


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown optimiser 'adam8bit'; did you mean 'adamw8bit'"):
        Run(optimiser="adam8bit")  # type: ignore[arg-type]
    assert small().optimiser == "adamw"
