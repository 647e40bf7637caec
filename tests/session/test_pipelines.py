"""A diffusers pipeline by its name: text encoders are freed while it trains, and come back for new prompts."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import equal, few_steps, snapshot

import flowward
from flowward.export import trained


@pytest.mark.processor
def test_a_pipeline_is_trained_sampled_saved_and_exported(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowward.models.diffusers.CACHE", tmp_path / "prompts")
    few = {"iterations": 1, "images_per_update": 4, "group_size": 2, "microbatch": 4, "updates_per_iteration": 1}
    run = flowward.fit(
        few_steps("flow_grpo"), str(saved), "jpeg-compressibility", ["a cat", "two dogs"],
        evaluation={"images": 2}, progress=False, **few,
    )  # fmt: skip
    drawn = run.sample(["a bird", "a cat"], count=1, tensor=True)
    assert drawn.shape[:2] == (2, 3) and drawn.isfinite().all()
    assert run.evaluate(["a bird", "a fish"], images=2).before is not None
    kept = run.save(tmp_path / "kept")
    assert equal(snapshot(trained.load(kept)), snapshot(run.policy))
    files = run.export(tmp_path / "export")
    assert files[0] == tmp_path / "export" / "transformer"
    again = trained.load(tmp_path / "export")
    assert equal(snapshot(again), snapshot(run.policy))
