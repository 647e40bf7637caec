"""No input ends in a traceback: 2,000 random ones here, 100,000 in benchmarks/fuzz.py (docs/reliability.md)."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from fuzzing import AREAS, asked


@pytest.mark.parametrize("name", AREAS)
def test_an_input_gives_a_value_or_a_sentence(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    area = AREAS[name]
    monkeypatch.chdir(tmp_path)

    @asked(area.few, derandomize=True)
    @hypothesis.given(area.inputs)
    def one(value: Any) -> None:
        with tempfile.TemporaryDirectory() as folder:
            area.check(value, Path(folder))

    one()
    assert not list(tmp_path.iterdir())


def test_there_are_two_thousand() -> None:
    assert sum(area.few for area in AREAS.values()) >= 2000
