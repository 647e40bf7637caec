"""Check what a short demo left behind: check_demo.py FOLDER ITERATIONS. The first fault ends it, in one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

SMALLEST_REPORT = 100_000
ENDS = 5
SCORE = ("evaluation", "scores", "scenes-strict", "overall", "mean")


def check(folder: Path, iterations: int) -> str:
    """The figures in one line. Raises SystemExit."""
    report = folder / "report.html"
    if not report.is_file():
        raise SystemExit(f"ci: {report} is missing.")
    size = report.stat().st_size
    if size < SMALLEST_REPORT:
        raise SystemExit(f"ci: {report} holds {size} bytes, and a whole report holds at least {SMALLEST_REPORT}.")

    metrics = folder / "metrics.jsonl"
    if not metrics.is_file():
        raise SystemExit(f"ci: {metrics} is missing.")
    try:
        lines = [json.loads(line) for line in metrics.read_text("utf-8").splitlines()]
    except ValueError as error:
        raise SystemExit(f"ci: {metrics} holds a line that is not JSON: {error}.") from error
    rewards = [line["reward"] for line in lines if number(line.get("reward"))]
    if len(rewards) < iterations:
        raise SystemExit(f"ci: {metrics} holds {len(rewards)} iterations with a reward, not {iterations}.")

    evaluations = [line for line in lines if line.get("evaluation") is not None]
    if not evaluations:
        raise SystemExit(f"ci: {metrics} holds no evaluation.")
    score = dig(evaluations[-1], SCORE)
    if not number(score) or not 0 <= score <= 1:
        raise SystemExit(f"ci: {'.'.join(SCORE)} of the last evaluation is {score!r}, not a number from 0 to 1.")

    first, last = (sum(part) / ENDS for part in (rewards[:ENDS], rewards[-ENDS:]))
    if not last > first:
        raise SystemExit(f"ci: the mean reward went from {first:.4f} to {last:.4f}: training did not raise it.")
    before = dig(evaluations[0], SCORE)
    rise = f"{before:.3f} to " if number(before) and len(evaluations) > 1 else ""
    return (
        f"ci: {len(rewards)} iterations, mean reward {first:.3f} to {last:.3f} (first and last {ENDS}), "
        f"strict score {rise}{score:.3f}, report of {size / 1e6:.1f} MB"
    )


def number(value: Any) -> bool:
    """Not a number, and what is infinite, are neither above nor below."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < float("inf")


def dig(tree: Any, path: tuple[str, ...]) -> Any:
    """What lies at the path, or None."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


if __name__ == "__main__":
    print(check(Path(sys.argv[1]), int(sys.argv[2])))
