"""YAML files have one meaning, or are refused with the line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flowward.system.strict_yaml import DEEPEST, loads

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 10)}]\n" for before, after in zip("abcdef", "bcdefg", strict=True)
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a: [1, 2.5, x, ~, true]", {"a": [1, 2.5, "x", None, True]}),
        ("a: 1e-4\nb: -.5\nc: 1.5e3\nd: 1.0e-5\ne: 3.", {"a": 1e-4, "b": -0.5, "c": 1500.0, "d": 1e-5, "e": 3.0}),
        ("a: 'on'\nb: \"010\"\nc: 2024-01-01x\nd: 1.2.3", {"a": "on", "b": "010", "c": "2024-01-01x", "d": "1.2.3"}),
        ("a: &x {b: 1}\nc: {<<: *x, b: 2}", {"a": {"b": 1}, "c": {"b": 2}}),
        ("a: http://127.0.0.1:8000/v1", {"a": "http://127.0.0.1:8000/v1"}),
        ("on1: 0x10", {"on1": 16}),
    ],
)
def test_what_is_plain_is_read(text: str, value: Any) -> None:
    assert loads(text) == value


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\nb: 2\na: 3", "line 3: 'a' is given twice (first in line 1)"),
        ("a: {b: 1, c: 2, b: 1}", "line 1: 'b' is given twice"),
        ("a: on", "line 1: 'on' has different meanings in YAML 1.1 and 1.2: write true or false, or put it in quotes"),
        ("No: 1", "line 1: 'No' has different meanings"),
        ("\na: 010", "line 2: '010' has different meanings in YAML 1.1 and 1.2: write the number without a leading 0"),
        ("a: 0o17", "'0o17' has different meanings"),
        ("a: 1_000", "'1_000' has different meanings"),
        ("a: 12:30", "'12:30' has different meanings"),
        ("a: 2024-01-01", "'2024-01-01' has different meanings"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: the tag !!python/object/apply:os.system is not read"),
        ("a: !mine 3", "line 1: the tag !mine is not read; write a plain value"),
        ("a: !!binary aGk=", "the tag !!binary is not read"),
        ("a: " + "[" * 60 + "]" * 60, f"line 1: it is nested more than {DEEPEST} levels deep"),
        ("a: " + "[" * 5000, f"nested more than {DEEPEST} levels deep"),
        ("a: &a [*a]", "line 1: it contains itself"),
        (BOMB, "stands for more than 100,000 values"),
        ("? [1]\n: 2", "line 1: a key must be a plain word"),
        ("a:\n\tb: 1", "line 2: a tab; indent with spaces"),
        ("a: b: c", "line 1: mapping values are not allowed here"),
        ("a: *b", "line 1: found undefined alias 'b'"),
        ("a: 1\n--- \nb: 2", "line 2: expected a single document in the stream"),
        ("a: 1\nb: \x1b[31m", "line 2: the character U+001B is not allowed in YAML"),
    ],
)
def test_what_has_no_single_meaning_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        loads(text)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("file", sorted(Path(__file__).parents[2].glob("recipes/*/*.yaml")), ids=lambda file: file.stem)
def test_our_own_files_have_one_meaning(file: Path) -> None:
    assert loads(file.read_text("utf-8")) == yaml.safe_load(file.read_text("utf-8"))


def test_what_is_written_is_read_again() -> None:
    """config.yaml of a run, whatever texts are in it; 1e-4 is a number, and settings take it as one."""
    words = ["on", "010", "1_0", "12:30", "2024-01-01", "=", "<<", "~", "null", "é ☃", " x ", "a: b", "%", "@x", "- y"]
    value = {"words": words, "number": 1e-5, "none": None, "yes": True}
    assert loads(yaml.safe_dump(value)) == value
