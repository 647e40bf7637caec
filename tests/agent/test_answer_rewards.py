"""Rewards on answers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from flowward.agent import rewards
from flowward.rewards import RewardError

# Rewards


def score(name: str, answer: str, right: Any) -> float:
    (term,) = rewards.load([name])
    return term.score([answer], ["q"], [{"answer": right}]).item()


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("The  Eiffel-Tower!", "eiffel tower", 1),
        ("Paris", ["London", "paris"], 1),
        ("Paris, France", "Paris", 0),
        ("42.0", "42", 1),
        ("1,000", "1000", 1),
        ("1,2,3", "123", 0),
        ("-5", "5", 0),
        ("\u22125", "-5", 1),
        ("+5", 5, 1),
        ("x = -5", "x = 5", 0),
        ("-5 degrees", "\u22125 degrees", 1),
        ("2019-2020", "2019 2020", 1),
        ("A", "a", 1),  # the choice, not the article
        ("A", "B", 0),
        ("(A)", "A", 1),
        ("", "A", 0),
        ("", "?", 0),
        ("yes", True, 0),
        ("caf\u00e9", "cafe\u0301", 1),
    ],
)
def test_exact(answer: str, right: Any, expected: float) -> None:
    assert score("exact", answer, right) == expected


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("It is 41, no, 42.", "42", 1),
        ("1,234,567", 1234567, 1),
        ("about 1,000, I think", 1000, 1),
        ("pick 1,2,3", 3, 1),
        ("3/4", 0.75, 1),
        ("3 / 0", 3, 0),
        ("50 %", 50, 1),
        (".5", "0.5", 1),
        ("\u22127", -7, 1),
        ("1990-05", 5, 1),
        ("6.02e23", 6.02e23, 1),
        ("1.0000001", 1, 1),
        ("1.001", 1, 0),
        ("1e999", 5, 0),  # infinity is near nothing
        ("1e999", "1e999", 0),
        ("none", 0, 0),
        ("0", 0, 1),
        ("7", ["5", "7"], 1),
    ],
)
def test_number(answer: str, right: Any, expected: float) -> None:
    assert score("number", answer, right) == expected


def test_f1() -> None:
    assert score("f1", "the cat sat", "a cat sat down") == pytest.approx(4 / 5)  # 2 shared of 2 and 3
    assert score("f1", "cat cat", "cat") == pytest.approx(2 / 3)
    assert score("f1", "dog", ["cat", "dog house"]) == pytest.approx(2 / 3)
    assert score("f1", "", "cat") == score("f1", "cat", None) == 0
    assert score("f1", "A", "A") == 1


def test_rewards_by_name_and_what_is_refused() -> None:
    found = rewards.load(["exact=0.5", "f1"])
    assert [(term.name, term.weight, term.verdicts) for term in found] == [("exact", 0.5, True), ("f1", 1.0, False)]
    for names, sentence in (
        (["exacct"], "unknown reward of answers 'exacct'; did you mean 'exact'"),
        (["f1", "f1=2"], "'f1' is named twice"),
        ([], "name at least one reward"),
    ):
        with pytest.raises(ValueError, match=sentence):
            rewards.load(names)
    assert len(found[0].score([], [], [])) == 0
    for made, sentence in (
        (lambda *_: [1.0], r"must return shape \[2\], but returned \[1\]"),
        (lambda *_: [0.0, math.nan], "returned nan for the question 'q2'"),
        (lambda *_: ["a", "b"], "must return one number per answer"),
    ):
        with pytest.raises(RewardError, match=sentence):
            rewards.Term("mine", 1.0, made).score(["a", "b"], ["q1", "q2"], [{}, {}])  # type: ignore[arg-type]


def test_questions_without_an_answer_or_asked_twice_are_refused() -> None:
    rewards.refuse(["a", "b"], [{"answer": "1"}, {"answer": ["", "2"]}], "mine")
    for about in ({}, {"answer": None}, {"answer": []}, {"answer": " "}):
        with pytest.raises(ValueError, match="mine: question 2, 'b', has no 'answer' to compare with"):
            rewards.refuse(["a", "b"], [{"answer": "1"}, about], "mine")
    with pytest.raises(ValueError, match="mine: question 2, 'a', is question 1 again"):
        rewards.refuse(["a", "a"], [{"answer": "1"}] * 2, "mine")
