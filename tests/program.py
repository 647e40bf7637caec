"""The program as a user calls it: a short run, and what it says where it refuses."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from flowward.cli import main

BUDGET = shlex.split(
    "--images-per-update 8 --group-size 4 --microbatch 8 --learning-rate 1e-3 --algorithm.rollout.steps 2 "
    "--evaluation.images 6 --evaluation.sampler.steps 1 --evaluation.rewards balance --checkpoint-every 9"
)
Refused = Callable[..., str]


def started(tiny: str, folder: Path, *words: str) -> Path:
    """A run of one iteration."""
    how = [*BUDGET, "--model", tiny, "--reward", "balance", "--iterations", "1"]
    assert main(["train", *how, "--output", str(folder), *words]) == 0
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def alone(code: str, *words: str) -> tuple[str, float]:
    """What code prints in a process of its own, and its seconds of work, which a busy machine makes no more."""
    before = os.times()
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)
    after = os.times()
    work = after.children_user + after.children_system - before.children_user - before.children_system
    return done.stdout, work
