"""Statistics over seeds and prompts: known spreads, paired differences, curves, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from flowward.evaluation.seeds import (
    area,
    at_budget,
    between,
    improvement,
    improvements,
    interquartile_mean,
    reached,
    resampled,
)
from flowward.evaluation.statistics import bootstrap, bounds

PROMPTS = np.repeat(np.arange(60), 4)


def drawn(seeds: int, of_seed: float, of_prompt: float, shift: float = 0.0, stream: int = 0) -> np.ndarray:
    rng = np.random.default_rng(stream)
    noise = rng.normal(0, 0.1, (seeds, len(PROMPTS)))
    return shift + of_seed * rng.normal(size=(seeds, 1)) + of_prompt * rng.normal(size=60)[PROMPTS] + noise


def test_one_seed_has_the_spread_of_its_prompts() -> None:
    scores = drawn(1, 0, 1)
    ours, theirs = bounds(resampled([scores], PROMPTS)[:, 0]), bounds(bootstrap(scores[0], PROMPTS)[:, 0])
    assert ours == pytest.approx(theirs, abs=0.02)


def test_the_variance_is_that_of_seeds_and_of_prompts() -> None:
    """Var of the mean = s^2 / S + p^2 / P + e^2 / (S N): on average over worlds, since the bootstrap is unbiased."""
    found = []
    for stream in range(40):
        means = resampled([drawn(5, 0.5, 1.0, stream=stream)], PROMPTS, resamples=1000, seed=stream)
        found.append(means.var())
    assert np.mean(found) == pytest.approx(0.5**2 / 5 + 1 / 60, rel=0.2)


def test_a_difference_on_equal_seeds_and_prompts_has_no_spread_of_either() -> None:
    base = drawn(3, 0.5, 1.0)
    means = resampled([base + 0.25, base], PROMPTS)
    assert bounds(means[:, 0] - means[:, 1]) == pytest.approx((0.25, 0.25), abs=1e-12)
    apart = resampled([base + 0.25, base], PROMPTS, paired=False)
    low, high = bounds(apart[:, 0] - apart[:, 1])
    assert low < 0.24 and high > 0.26  # the seeds are others for each
    assert resampled([base], PROMPTS).mean() == pytest.approx(base.mean(), abs=0.02)


def test_strata_keep_their_shares() -> None:
    """Two strata whose prompts agree: there is no spread, however different they are."""
    own = PROMPTS % 2
    means = resampled([np.stack([own, own])], PROMPTS, own)
    assert np.ptp(means) < 1e-12 and means[0, 0] == pytest.approx(0.5)


def test_impossible_resamples_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two different prompts"):
        resampled([np.ones((2, 4))], np.zeros(4))
    with pytest.raises(ValueError, match="paired runs need the same seeds, not 2, 3 of them"):
        resampled([np.ones((2, 4)), np.ones((3, 4))], np.arange(4))


def test_curves_by_hand() -> None:
    at, scores = [0.0, 10.0, 20.0, 40.0], [0.2, 0.4, 0.3, 0.7]
    assert at_budget(at, scores, 5) == pytest.approx(0.3) and at_budget(at, scores, 40) == 0.7
    assert between(at, 10) == (0, 1, 1.0) and between(at, 0) == (0, 0, 0.0)
    assert area(at, scores, 20) == pytest.approx((3 + 3.5) / 20)
    assert area(at, scores, 30) == pytest.approx((3 + 3.5 + 4) / 30)
    assert area([0.0], [0.2], 0.0) == 0.2
    assert reached(at, scores, 0.3) == pytest.approx(5) and reached(at, scores, 0.5) == pytest.approx(30)
    assert reached(at, scores, 0.1) == 0 and reached(at, scores, 0.8) is None
    with pytest.raises(ValueError, match="says nothing of 41"):
        between(at, 41)


def test_how_often_one_is_better() -> None:
    assert improvement([1, 2], [0, 1]) == pytest.approx(3.5 / 4)
    assert improvement([1, 2, 3], [1, 2, 3]) == 0.5
    assert interquartile_mean([0, 1, 2, 100]) == pytest.approx(1.5)
    assert interquartile_mean([5, 1, 3]) == pytest.approx((3 + 0.25 * 5 + 0.25 * 1) / 1.5)
    assert interquartile_mean(range(8)) == pytest.approx(3.5)


def test_intervals_of_how_often_one_is_better() -> None:
    """Runs that are better on every image always are, close ones sometimes, and both ways add up to 1."""
    rng = np.random.default_rng(0)
    base = rng.random((3, len(PROMPTS)))
    near = base + rng.normal(0, 0.05, (3, 1))
    found = improvements([base, base + 0.5, near], PROMPTS, resamples=400)
    assert found.shape == (400, 3, 3)
    np.testing.assert_allclose(found[:, 1, 0], 1)
    np.testing.assert_allclose(found + found.transpose(0, 2, 1), 1)
    assert 0 <= found[:, 2, 0].min() < found[:, 2, 0].max() <= 1
    same = improvements([base[:1], base[:1]], PROMPTS, resamples=50)
    np.testing.assert_allclose(same, 0.5)
