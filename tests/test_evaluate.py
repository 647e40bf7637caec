"""Intervals belong to the kind of reward, not to the scores that it happened to give."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import models, prompts
from flowward.evaluate import Evaluation, evaluate, interval
from flowward.rollout import Sampler


def test_verdicts_have_wilsons_interval() -> None:
    found = interval(torch.tensor([1.0] * 7 + [0.0] * 3), verdicts=True)
    assert found["mean"] == pytest.approx(0.7)
    assert (found["low"], found["high"]) == pytest.approx((0.3968, 0.8922), abs=1e-4)
    none, one = interval(torch.zeros(6), verdicts=True), interval(torch.ones(1), verdicts=True)
    assert (none["low"], none["high"]) == pytest.approx((0, 0.3903), abs=1e-4)
    assert (one["low"], one["high"]) == pytest.approx((0.2065, 1), abs=1e-4)


def test_other_scores_have_the_normal_one() -> None:
    found = interval(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    half = 1.959964 * math.sqrt(5 / 3) / 2
    assert (found["low"], found["high"]) == pytest.approx((1.5 - half, 1.5 + half))
    nothing = interval(torch.zeros(6))  # not [0, 0.39]: nobody said that they are verdicts
    assert (nothing["mean"], nothing["low"], nothing["high"]) == (0, 0, 0)


def test_a_single_score_bounds_nothing() -> None:
    assert interval(torch.tensor([0.4]))["low"] == -math.inf and interval(torch.tensor([0.4]))["high"] == math.inf


class Black:
    def __call__(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return torch.zeros(len(images))


class Wrong(Black):
    def explain(self, images: Tensor, texts: Sequence[str], metadata: Any = None) -> list[str]:
        return ["it is not black"] * len(images)


def test_a_reward_that_says_what_is_wrong_gives_verdicts(tiny: str) -> None:
    how = Evaluation(images=6, sampler=Sampler(1))
    found = evaluate(models.load(tiny), prompts.load("scenes"), how, {"black": Black(), "wrong": Wrong()})["scores"]
    assert found["black"]["overall"]["high"] == 0
    assert found["wrong"]["overall"]["high"] == pytest.approx(0.39, abs=0.01)
    assert found["wrong"]["categories"]["colors"]["high"] == pytest.approx(0.79, abs=0.01)
