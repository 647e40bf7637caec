"""The house stays one that a newcomer can read: small files and functions, few of them at the door, tests by wing."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HOUSE = ROOT / "flowward"
FILES = sorted(path for name in ("flowward", "tests", "benchmarks", "examples") for path in (ROOT / name).rglob("*.py"))


def functions(path: Path) -> list[tuple[str, int]]:
    """(name, lines) of every function in a file."""
    return [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_have_at_most_400_lines_and_functions_60(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= 400
    assert [(name, lines) for name, lines in functions(path) if lines > 60] == []


def test_nine_of_ten_functions_have_at_most_20_lines() -> None:
    lines = sorted(length for path in HOUSE.rglob("*.py") for _, length in functions(path))
    assert lines[int(0.9 * len(lines))] <= 20


def test_few_files_stand_at_the_door() -> None:
    assert len([path for path in HOUSE.iterdir() if path.is_file()]) <= 8


def test_tests_lie_in_the_wings_of_what_they_test() -> None:
    wings = {path.name for path in HOUSE.iterdir() if (path / "__init__.py").is_file()}
    homes = {path.parent.name for path in (ROOT / "tests").glob("*/test_*.py")}
    assert homes <= wings
    assert [path.name for path in (ROOT / "tests").glob("test_*.py")] == [Path(__file__).name]
