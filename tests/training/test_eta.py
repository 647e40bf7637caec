"""The ETA follows the last iterations, and counts the evaluations that are still due."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from tiny_runs import small

from flowward.training import log
from flowward.training.metrics import Step


@pytest.mark.parametrize(("every", "end"), [(0, 5), (2, 5), (5, 5), (1, 3), (7, 5), (3, 0)])
def test_evaluations_that_are_still_due(every: int, end: int) -> None:
    run = small(iterations=end, evaluate_every=every)
    due = [k for k in range(1, end + 1) if k == end or (every and k % every == 0)]
    assert [run.evaluations(after) for after in range(end + 1)] == [
        sum(k > after for k in due) for after in range(end + 1)
    ]


def test_a_slow_beginning_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    progress = log.TrainProgress(small(iterations=100, evaluate_every=50), 0, Path("run"))
    left = 0.0
    for index in range(1, 41):
        now += 100.0 if index <= 20 else 2.0
        left = progress._left(Step(index, {"reward": 0.0}, [], {"evaluate": 30.0} if index == 1 else {}))
    assert left == 60 * 2.0 + 2 * 30.0
