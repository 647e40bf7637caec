"""The pages of the leaderboard and of the claims: their numbers are those of the files of results."""

from __future__ import annotations

from typing import Any

import pytest
from benchmark_files import benchmark

board = benchmark("leaderboard")


def interval(mean: float, low: float, high: float) -> dict[str, float]:
    return {"mean": mean, "low": low, "high": high}


def found(over: dict[str, float] | None = None, seeds: Any = ((0.4, 0.4), (0.5, 0.6))) -> dict[str, Any]:
    """Two algorithms with two seeds: `slow` reaches 0.5 at its end, `quick` there or half-way."""
    own = {
        "quick": {
            **interval(0.55, 0.5, 0.6),
            "over": {"slow": over or interval(0.05, 0.01, 0.09)},
            "seeds": [0.5, 0.6],
            "collapsed": 0,
        },
        "slow": {
            **interval(0.5, 0.45, 0.55),
            "over": {"quick": interval(-0.05, -0.09, -0.01)},
            "seeds": [0.5, 0.5],
            "collapsed": 2,
        },
    }
    curves = {
        "slow": {"images": [0.0, 100.0], "mean": [0.4, 0.5], "seeds": [[0.4, 0.4], [0.5, 0.5]]},
        "quick": {"images": [0.0, 100.0], "mean": [0.4, 0.55], "seeds": [list(each) for each in seeds]},
    }
    costs = {
        "quick": {"seconds": 0.02, "evaluations": 10.0, "images": 10},
        "slow": {"seconds": 0.04, "evaluations": 10.0, "images": 10},
    }
    reward = {
        "reward": "strict",
        "base": interval(0.4, 0.38, 0.42),
        "curves": curves,
        "budgets": {"images": {"amount": 100, "algorithms": own}},
    }
    return {"rewards": [reward], "costs": costs}


def answer(statement: dict[str, Any], **changes: Any) -> tuple[str, str]:
    said: tuple[str, str] = board.answer(statement, {"leaderboard": found(**changes)})
    return said


ABOVE = {"above": {"ours": "quick", "theirs": "slow", "at": "images"}}
FASTER = {"faster": {"ours": "quick", "theirs": "slow", "in": "images", "claimed": 2}}


def test_a_difference_needs_an_interval_on_one_side() -> None:
    assert answer(ABOVE) == ("strict: +5.0 [+1.0, +9.0] points", "same direction")
    assert answer(ABOVE, over=interval(0.05, -0.01, 0.11))[1] == "cannot be told here"
    assert answer(ABOVE, over=interval(-0.05, -0.09, -0.01))[1] == "not"


def test_speed_is_told_seed_by_seed() -> None:
    """The target is 0.5, which `slow` needs 100 images for: one seed of `quick` needs 100, the other 50."""
    assert answer(FASTER) == ("strict: 1 to 2 times; claimed: 2", "cannot be told here")
    assert answer(FASTER, seeds=((0.4, 0.4), (0.7, 0.6))) == ("strict: 2 to 3 times; claimed: 2", "same direction")
    seconds = {"faster": {**FASTER["faster"], "in": "seconds"}}
    assert answer(seconds)[0] == "strict: 2 to 4 times; claimed: 2"  # an image costs half as much
    said, verdict = answer(FASTER, seeds=((0.4, 0.4), (0.45, 0.6)))
    assert said == "strict: 2 to 2 times; claimed: 2 (1 of 2 seeds reach it)" and verdict == "cannot be told here"
    assert answer(FASTER, seeds=((0.4, 0.4), (0.45, 0.46))) == ("strict: not reached", "not")
    assert answer(FASTER, seeds=((0.4, 0.4), (0.4, 0.4)))[1] == "not"


def test_the_other_kinds() -> None:
    assert answer({"falls": {"entry": "slow"}})[1] == "same direction"
    assert answer({"falls": {"entry": "quick"}})[1] == "not"
    among = {"among": ["quick", "slow"], "claimed": "quick"}
    assert answer({"best": among}) == ("strict: quick 55.0, slow 50.0", "same direction")
    assert answer({"best": {**among, "claimed": "slow"}})[1] == "not"
    assert answer({"spread": {"among": ["quick", "slow"], "at": "images"}})[0] == "strict: slow 50.0 to quick 55.0"
    assert answer({"said": "elsewhere", "verdict": "not"}) == ("elsewhere", "not")
    assert answer({"above": {"ours": "quick", "theirs": "third", "at": "images"}})[0] == "not measured yet"


@pytest.mark.parametrize(
    ("verdicts", "one"),
    [
        (["same direction", "cannot be told here"], "same direction"),
        (["not", "not"], "not"),
        (["same direction", "not"], "cannot be told here"),
        (["cannot be told here"], "cannot be told here"),
    ],
)
def test_rewards_that_disagree_tell_nothing(verdicts: list[str], one: str) -> None:
    assert board.together(verdicts) == one


def test_the_pages_are_those_of_the_results() -> None:
    """After new results: python benchmarks/leaderboard.py."""
    for name, text in board.pages().items():
        assert board.PAGES[name].read_text("utf-8") == text
