"""The short form of benchmarks/kill.py: runs that are killed and resumed end as one that was not, to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "kill.py"


def test_killed_runs_end_as_if_they_had_not_been(tiny: str, tmp_path: Path) -> None:
    """One at a random moment, and some at file operations of a new run and of a resumed one; one process and two."""
    log = tmp_path / "kills.jsonl"
    how = ["--processes", "1", "2", "--random", "1", "--every", "31", "--model", tiny, "--log", str(log)]
    command = [sys.executable, str(BENCHMARK), *how]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(BENCHMARK.parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["processes"], line["kind"]) for line in lines} == {
        (processes, kind) for processes in (1, 2) for kind in ("random", "start", "resumed")
    }
    assert all(line["died"] in (-9, -25, 137, 153) for line in lines if line["kind"] != "random")
