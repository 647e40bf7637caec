"""Lines of metrics.jsonl that are damaged do not take the others with them."""

from __future__ import annotations

import json

import pytest

from flowward.training import lines

WHOLE = {"iteration": 3, "images": 8, "reward": 0.5, "health": ["a"], "seconds": {"total": 1}, "other": 1}
SCORE = {"mean": 0.5, "low": None, "high": None, "n": 2, "prompts": 2}
MEASURED = {**WHOLE, "evaluation": {"seed": 1, "scores": {"x": {"overall": SCORE, "categories": {"all": SCORE}}}}}


@pytest.mark.parametrize(
    "bad",
    [
        "",
        "\0\0\0\0",
        json.dumps(WHOLE)[:-9],
        "[" * 100_000,
        "7",
        "{}",
        '{"iteration": "3"}',
        '{"iteration": true}',
        '{"iteration": -1}',
        json.dumps({**WHOLE, "images": "8"}),
        json.dumps({**WHOLE, "reward": "high"}),
        json.dumps({**WHOLE, "health": "a"}),
        json.dumps({**WHOLE, "seconds": [1]}),
        json.dumps({**WHOLE, "evaluation": {"scores": []}}),
        json.dumps({**WHOLE, "evaluation": {"scores": {"x": {"overall": {"mean": 1}}}}}),
    ],
    ids=lambda text: text[:40],
)
def test_a_damaged_line_is_left_out(bad: str) -> None:
    whole = [json.dumps(WHOLE), json.dumps(MEASURED)]
    assert lines.readable("\n".join([whole[0], bad, whole[1]])) == [WHOLE, MEASURED]


def test_what_readers_cannot_use_is_kept_in_the_file() -> None:
    """Another version may have written it."""
    other = {**WHOLE, "health": {"a": 1}}
    assert lines.parsed(json.dumps(other)) == [other] and lines.readable(json.dumps(other)) == []


def test_gaps_are_named() -> None:
    assert lines.gaps([{"iteration": n} for n in (0, 1, 2, 5, 7)], 8) == [3, 4, 6, 8]
    assert lines.gaps([{"iteration": n} for n in (0, 1)], 1) == []
    assert lines.spans([3, 4, 6, 8]) == "3–4, 6, 8"
    assert lines.spans(range(0, 100, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, … 98 (50 in all)"
