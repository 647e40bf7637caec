"""Trouble that a run gets over: a gradient that is not finite, weights that diverged, memory that ran out once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, close, equal, small, snapshot, trainer

import flowward
from flowward import models, prompts
from flowward.system.memory import OutOfMemory
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.metrics import Step
from flowward.training.trainer import Trainer


def failing(one: Trainer, monkeypatch: pytest.MonkeyPatch, *bad: int, scale: float = float("nan")) -> None:
    """The loss of these optimiser steps, counted from 0, is multiplied by NaN."""
    taken, update, loss = [0], one.update, type(one.algorithm).loss

    def counted(number: int) -> Any:
        taken[0] += 1
        return update(number)

    def spoilt(self: Any, models: Any, points: Any) -> Any:
        found, watched = loss(self, models, points)
        return found * (scale if taken[0] in bad else 1.0), watched

    monkeypatch.setattr(one, "update", counted)
    monkeypatch.setattr(type(one.algorithm), "loss", spoilt)


def test_a_gradient_that_is_not_finite_may_be_skipped(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights stay, the step is counted, and the next one is taken as usual."""
    one = trainer(tiny, skip_nonfinite=1, updates_per_iteration=2)
    failing(one, monkeypatch, 1, 2)
    first = one.step()
    assert first.metrics["skipped_steps"] == 1 and first.metrics["gradient_norm"] > 0
    before = snapshot(one.policy)
    with pytest.raises(TrainingError, match="the gradient of iteration 2 is NaN or infinite"):
        one.step()  # two in a row
    assert equal(before, snapshot(one.policy))


def test_steps_that_are_skipped_are_counted_in_a_row(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tiny, skip_nonfinite=1)
    failing(one, monkeypatch, 0, 2)
    before = snapshot(one.policy)
    assert one.step().metrics["skipped_steps"] == 1 and equal(before, snapshot(one.policy))
    assert one.step().metrics["skipped_steps"] == 0 and not equal(before, snapshot(one.policy))
    assert one.step().metrics["skipped_steps"] == 1
    assert one.state_dict()["troubles"] == {"skipped": 1, "rollbacks": 0}


def test_without_the_option_nothing_is_counted(tiny: str) -> None:
    one = trainer(tiny)
    assert "skipped_steps" not in one.step().metrics and "troubles" not in one.state_dict()


def run(tiny: str, folder: Path, monkeypatch: pytest.MonkeyPatch, bad: set[int], **changes: Any) -> Iterator[Step]:
    """A run from Python whose samples of these iterations are not finite, once each."""
    gather = Trainer.gather

    def broken(self: Trainer, index: int, clock: Any) -> Any:
        if index + 1 in bad:
            bad.discard(index + 1)
            raise TrainingError("the samples are NaN or infinite")
        return gather(self, index, clock)

    monkeypatch.setattr(Trainer, "gather", broken)
    policy = models.load(tiny, None, "float32")
    how = small(output=folder, iterations=4, checkpoint_every=1, warmup=0, **changes)
    return flowward.train(algorithm(), policy, bright, prompts.of("mine", TEXTS), how)


def test_a_run_goes_back_with_half_the_learning_rate(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rates: list[float] = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    steps = list(run(tiny, tmp_path / "run", monkeypatch, {3}, rollback=1, learning_rate=1e-3))
    assert [each.index for each in steps] == [1, 2, 3, 4]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4])
    assert steps[2].health[0] == (
        "went back from iteration 3 to 2, and goes on with 0.5 times the learning rate: the samples are NaN or infinite"
    )
    folder = RunFolder.open(tmp_path / "run")
    assert [line["iteration"] for line in folder.lines()] == [1, 2, 3, 4]
    state = folder.state()
    assert state is not None and state["troubles"] == {"skipped": 0, "rollbacks": 1}


def test_it_goes_back_so_often_and_no_more(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = run(tiny, tmp_path / "run", monkeypatch, {2, 3}, rollback=1)
    with pytest.raises(TrainingError, match="the samples are NaN"):
        list(steps)
    assert [line["iteration"] for line in RunFolder.open(tmp_path / "run").lines()] == [1, 2]


def test_without_a_checkpoint_there_is_nowhere_to_go(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TrainingError):
        list(run(tiny, tmp_path / "run", monkeypatch, {1}, rollback=1))


def test_memory_that_runs_out_once_halves_the_microbatch(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The result is that of a run with half the microbatch, to the bit; and that of the whole one, up to rounding."""
    whole, half, one = (trainer(tiny, microbatch=size) for size in (8, 4, 8))
    ends = []
    for each in (whole, half):
        each.step()
        ends.append(snapshot(each.policy))
    loss, calls = type(one.algorithm).loss, []

    def full(self: Any, models: Any, points: Any) -> Any:
        calls.append(len(points))
        found = loss(self, models, points)
        if len(calls) == 1:  # after a forward pass, as on a GPU
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(type(one.algorithm), "loss", full)
    step = one.step()
    assert calls == [8, 4, 4]
    assert equal(snapshot(one.policy), ends[1])
    close(snapshot(one.policy), ends[0])
    assert step.health[0].startswith("out of memory with 8 training points per pass; going on with 4: the same result")
    assert one.run.microbatch == 8 and one.microbatch == 4


def test_memory_that_never_suffices_ends_the_run(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one = trainer(tiny, microbatch=8)

    def full(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(type(one.algorithm), "loss", full)
    with pytest.raises(OutOfMemory, match=r"and 1 training points per forward and backward pass: lower"):
        one.step()
