"""Runs from the command line, and what has to be equal where one was stopped and resumed."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch

from flowward.cli import main
from flowward.system import checkpoint
from flowward.training.folder import RunFolder

BUDGET = shlex.split(
    "--images-per-update 8 --group-size 4 --microbatch 8 --learning-rate 1e-3 --algorithm.rollout.steps 2 "
    "--evaluation.images 6 --evaluation.sampler.steps 2 --reward balance --threads 1 --schedule constant"
)


def train(*words: str | Path) -> None:
    assert main(["train", *map(str, words)]) == 0


def state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(RunFolder.open(folder).checkpoints()[-1])


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Every line of metrics.jsonl, without its timings."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
        line.pop("speed", None)
    return lines


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Two nests are equal, to the bit."""
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{index}")
    else:
        assert a == b, where


def assert_same_run(a: Path, b: Path) -> None:
    one = state(a)
    assert set(one["weights"]) == {"policy", "old", "ema"} and one["optimiser"]["state"]
    assert_same(one, state(b))
    assert metrics(a) == metrics(b)
    names = [sorted(path.name for path in (folder / "samples").iterdir()) for folder in (a, b)]
    assert names[0] == names[1]
