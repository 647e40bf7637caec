"""Scores of two versions of a reward's code are no change of the model; older files do not know the code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flowward.evaluation import comparison, outcome, provenance
from flowward.evaluation.code_hashes import CODE, code_differs, without_code
from flowward.evaluation.measurement import Measurement


def described(code: str | None, **more: Any) -> dict[str, Any]:
    """A weighted reward, whose code is inside its terms."""
    own = {"kind": "r.py.bright", **({CODE: code} if code else {}), **more}
    return {"kind": "flowward.rewards.loading.Sum", "terms": [["r.py:bright", 0.5, own]]}


@pytest.mark.parametrize(("one", "other", "differ"), [("a", "b", True), ("a", "a", False), ("a", None, False)])
def test_code_is_compared_where_both_know_it(one: str, other: str | None, differ: bool) -> None:
    assert code_differs(described(one), described(other)) == code_differs(described(other), described(one)) == differ
    assert without_code(described(one)) == without_code(described(other)) == described(None)


def measured(name: str, code: str | None) -> Measurement:
    settings = {"model": {"name": name}, "rewards": {"bright": described(code)}, "versions": {}}
    scores = {"bright": torch.tensor([0.1, 0.2])}
    return Measurement(name, settings, ("a", "b"), ("all", "all"), scores, frozenset())


def test_a_comparison_warns_of_other_code_and_refuses_other_options() -> None:
    one, other, older = measured("one", "a"), measured("other", "b"), measured("older", None)
    assert comparison.warnings([one, other]) == ["one and other were measured with different code of bright"]
    assert comparison.warnings([one, older]) == []
    assert comparison.differences([one, other])
    scaled = {"rewards": {"bright": described("a", scale=2)}}
    assert provenance.differing({"rewards": {"bright": described("a")}}, scaled)


@pytest.mark.parametrize(("later", "differ"), [("a", False), ("b", True), (None, False)])
def test_a_run_whose_reward_changed_has_no_result(later: str | None, differ: bool) -> None:
    def line(code: str | None, mean: float) -> dict[str, Any]:
        score = {"mean": mean, "low": mean - 0.01, "high": mean + 0.01, "n": 9}
        return {"rewards": {"bright": described(code)}, "scores": {"bright": {"overall": score, "categories": {}}}}

    said = outcome.sentence([(0, line("a", 0.1)), (5, line(later, 0.5))])
    assert ("differ in rewards and cannot be compared" in said) == differ
