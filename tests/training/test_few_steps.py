"""Runs of few-step models: what is refused before a run starts, what may be allowed, and how they are measured."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import TEXTS, TWO_TIMES, algorithm, bright, small

import flowward
from flowward import models, prompts
from flowward.cli import main
from flowward.training import config
from flowward.training.assembly import of_python

SHORT = (
    "--iterations", "1", "--images-per-update", "4", "--group-size", "2", "--microbatch", "4", "--rollout-batch", "4",
    "--algorithm.rollout.steps", "2", "--evaluate-every", "0", "--evaluation.images", "2", "--threads", "1",
    "--evaluation.rewards", "balance", "--precision", "float32",
)  # fmt: skip


def test_a_distilled_model_is_refused_before_anything_is_written(
    tiny: str, elsewhere: None, tmp_path: Path, refused: Callable[..., str]
) -> None:
    """And trained where that is allowed by name, with a warning; random steps need no leave."""
    words = ("train", "--model", tiny + TWO_TIMES, *SHORT)
    said = refused(*words, "--algorithm", "advantageflow", "--output", tmp_path / "one")
    assert "is step-distilled (`TwoTimeTransformer` in transformer/config.json, certain): AdvantageFlow would" in said
    assert said.endswith("add --allow-distilled") and not (tmp_path / "one").exists()
    assert main([*words, "--algorithm", "advantageflow", "--allow-distilled", "--output", str(tmp_path / "two")]) == 0
    assert yaml.safe_load((tmp_path / "two/config.yaml").read_text())["run"]["allow_distilled"] is True
    assert "may blur its samples" in (tmp_path / "two/metrics.jsonl").read_text()
    assert main([*words, "--algorithm", "flow_grpo", "--output", str(tmp_path / "three")]) == 0
    assert "use --algorithm.rollout.law cps" in (tmp_path / "three/metrics.jsonl").read_text()


def test_a_few_step_model_is_trained_and_measured_by_its_jumps(tiny: str, elsewhere: None, tmp_path: Path) -> None:
    words = ("train", "--model", tiny + TWO_TIMES, "--algorithm", "meanflow_advantage", *SHORT)
    assert main([*words, "--output", str(tmp_path / "run")]) == 0
    found = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert found["evaluation"]["sampler"]["solver"] == found["algorithm"]["rollout"]["solver"] == "jump"
    assert '"solver": "jump"' in (tmp_path / "run/metrics.jsonl").read_text()
    assert config.settings_type("meanflow_advantage")().model == "scenes-4step"
    assert config.settings_type("advantageflow")().evaluation.sampler.solver == "euler"


def test_a_model_with_one_time_is_refused(tiny: str, elsewhere: None, refused: Callable[..., str]) -> None:
    said = refused("train", "--model", tiny, "--algorithm", "meanflow_advantage", *SHORT)
    assert said.startswith("MeanFlowAdvantage trains jumps of a model with two times")
    said = refused("train", "--model", tiny, "--algorithm", "flow_grpo", *SHORT, "--evaluation.sampler.solver", "jump")
    assert said.startswith("solver `jump` needs a model with two times")


def test_from_python_too(tiny: str) -> None:
    few, texts = models.load(tiny + TWO_TIMES, None, "float32"), prompts.of("mine", TEXTS)
    given: tuple[Any, ...] = (algorithm(), few, bright, texts)
    with pytest.raises(ValueError, match="is step-distilled"):
        next(iter(flowward.train(*given, small())))
    _, _, told = of_python(*given, small(allow_distilled=True))
    assert any("(--allow-distilled)" in each for each in told)
