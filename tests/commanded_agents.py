"""The commands of `flowward agent` as a user calls them, with few and short iterations."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from flowward.cli import main

BUDGET = shlex.split(
    "--questions-per-update 2 --group-size 4 --updates-per-iteration 2 --evaluation.episodes 8 --threads 1 "
    "--learning-rate 1e-3 --evaluate-every 2"
)


def train(*words: str | Path) -> None:
    assert main(["agent", "train", *map(str, words)]) == 0


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    """What a command prints."""
    capsys.readouterr()
    assert main(["agent", *map(str, words)]) == code
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: str | Path, command: str = "agent") -> str:
    """The one sentence of a command that must refuse."""
    capsys.readouterr()
    assert main([command, *map(str, words)]) == 2
    told = capsys.readouterr().err
    assert told.startswith("flowward: ") and told.count("\n") == 1, told
    return told


def written(*rows: dict[str, Any], name: str = "mine.jsonl") -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name
