"""Plain JSON: what is read can be written again by every JSON writer, and the rest is refused with its place."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pytest

from flowward.system.plain_json import DEEPEST, parsed, plain


@pytest.mark.parametrize(
    ("value", "right"),
    [
        (datetime(2024, 1, 2, 3, 4, 5), "2024-01-02T03:04:05"),
        (datetime(2024, 1, 2, tzinfo=UTC), "2024-01-02T00:00:00+00:00"),
        (date(2024, 1, 2), "2024-01-02"),
        (time(3, 4), "03:04:00"),
        (timedelta(days=1, seconds=2), "1 day, 0:00:02"),
        (Decimal("1.50"), "1.50"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
        (np.float16(1.5), 1.5),
        (np.int64(2**62), 2**62),
        (2**70, 2**70),
        (True, True),
        (None, None),
        ({"a": [(1, date(2024, 1, 2))]}, {"a": [[1, "2024-01-02"]]}),
        ("👍", "👍"),
    ],
)
def test_values_become_plain(value: Any, right: Any) -> None:
    found = plain(value)
    assert found == right and type(found) is type(right)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert plain(found) == found


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"a": [1.0, float("nan")]}, "'a[1]' is NaN, which JSON cannot hold"),
        (np.float32("inf"), "is infinite, which JSON cannot hold"),
        ({"a": {"b": "x\ud83d"}}, r"'a.b' has \ud83d, half of a character"),
        ({"\udc00": 1}, r"has \udc00, half of a character"),
        ({"a": b"x"}, "'a' is of type bytes, which JSON cannot hold"),
        ({"a": {1: 2}}, "'a' has the key 1, but keys must be text"),
    ],
)
def test_what_json_cannot_hold_is_refused_with_its_place(value: Any, said: str) -> None:
    with pytest.raises(ValueError) as error:
        plain(value)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not JSON"),
        ('{"a": NaN}', "NaN is not a JSON value"),
        ('{"a": -Infinity}', "-Infinity is not a JSON value"),
        ('{"a": 1e999}', "the number 1e999 is too large"),
        ('{"a": 1, "b": 2, "a": 3}', "the key 'a' comes twice"),
        ('{"a": ' + "9" * 5000 + "}", "a number has 5000 digits"),
        ("[" * 100_000, "more than 64 lists or mappings are nested"),
        ("[" * 65 + "]" * 65, "more than 64 lists or mappings are nested"),
        (r'{"a": "\ud83d"}', r"'a' has \ud83d, half of a character"),
    ],
)
def test_json_that_cannot_be_written_again_is_refused(text: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        parsed(text)
    assert said in str(error.value)


def test_whole_characters_and_deep_values_are_read() -> None:
    assert parsed(r'{"a": "\ud83d\udc4d"}') == {"a": "👍"}
    assert parsed("[" * DEEPEST + "]" * DEEPEST)
    assert parsed('{"a": [' + "[]," * 99 + "[]]}") == {"a": [[]] * 100}
