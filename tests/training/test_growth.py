"""The short form of benchmarks/growth.py: four times as much of something costs at most four times as much.

What is counted are calls of functions, Python's and those in C: their number does not depend on the machine.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import benchmark

growth = benchmark("growth")

SMALL = {"iterations": 60, "evaluations": 20, "images": 36, "prompts": 600, "models": 2, "pairs of models": 3}
ALLOWED = 1.1  # over four times as many calls, for what depends on random values


def calls(work: Any) -> int:
    """How many functions this calls."""
    found = 0

    def profile(frame: Any, event: str, argument: Any) -> None:
        nonlocal found
        found += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(before)
    return found


def counted(case: Any, n: int, folder: Path) -> int:
    folder.mkdir()
    work = case.made(n, folder)
    work()  # what is loaded or remembered once
    return calls(work)


@pytest.mark.parametrize("case", growth.CASES, ids=lambda case: f"{case.cause}: {case.what}")
def test_calls_do_not_grow_faster_than_their_cause(case: Any, tmp_path: Path) -> None:
    n = SMALL[case.cause]
    once, four = (counted(case, size, tmp_path / str(size)) for size in (n, 4 * n))
    assert four <= once * ALLOWED * (1 if case.same else 4), f"{once} calls at {n}, {four} at {4 * n}"


def test_something_quadratic_is_found(tmp_path: Path) -> None:
    """Calls and time, with bounds that noise does not reach: 16 times as much against at most 6.4."""
    case = growth.Case(
        "pairs", "all of them", 40, lambda n, at: lambda: [abs(a - b) for a in range(n) for b in range(n)]
    )
    assert counted(case, 160, tmp_path / "a") > 4 * ALLOWED * counted(case, 40, tmp_path / "b")
    least = growth.seconds(case, 5, 80)
    assert least[2] > 4 * 1.6 * least[0]


def test_time_of_metrics_points_and_curves_is_linear() -> None:
    """Generous, for machines that do other things: at most 1.6 times what four times as much should take."""
    for what in ("read metrics", "training points of an iteration", "loss curves of a pretraining"):
        case = next(each for each in growth.CASES if each.what == what)
        least = growth.seconds(case, 5, case.size // 20)
        assert least[2] <= 4 * 1.6 * least[0], what


def test_the_command_fails_if_something_grows_too_fast(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = growth.Case("prompts", "linear", 1, lambda n, at: None)
    slow = growth.Case("prompts", "nothing should grow", 1, lambda n, at: None, same=True)
    monkeypatch.setattr(growth, "CASES", (fast, slow))
    monkeypatch.setattr(growth, "seconds", lambda case, repeats: [1.0, 2.0, 4.0])
    monkeypatch.setattr(sys, "argv", ["growth.py"])
    assert growth.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].endswith("| 2.00 | 2.5 | ok |") and lines[3].endswith("| 2.00 | 1.3 | grows too fast |")
    monkeypatch.setattr(sys, "argv", ["growth.py", "--only", "linear"])
    assert growth.main() == 0
