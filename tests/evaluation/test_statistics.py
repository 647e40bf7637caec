"""Intervals cover what they say, count prompts and not images, and tests agree with their closed forms."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from measurements import made
from scipy.stats import binom

from flowward.evaluation import measurement
from flowward.evaluation.statistics import Z95, bootstrap, bounds, holm, interval, mcnemar, p_value


def width(scores: np.ndarray, prompts: np.ndarray, strata: np.ndarray | None = None, seed: int = 0) -> float:
    low, high = bounds(bootstrap(scores, prompts, strata, seed=seed)[:, 0])
    return high - low


def test_a_large_sample_has_the_normal_interval() -> None:
    scores = np.random.default_rng(0).gamma(4.0, size=500)
    low, high = bounds(bootstrap(scores, range(500))[:, 0])
    half = Z95 * scores.std(ddof=1) / math.sqrt(500)
    assert (low, high) == pytest.approx((scores.mean() - half, scores.mean() + half), abs=0.05 * half)


def test_the_variance_is_unbiased_even_for_few_prompts() -> None:
    """n of n prompts would give (n - 1) / n of it: two thirds here."""
    scores = np.array([0.0, 1.0, 5.0])
    spread = bootstrap(scores, range(3), resamples=200_000)[:, 0].var()
    assert spread == pytest.approx(scores.var(ddof=1) / 3, rel=0.01)


def test_strata_are_held_fixed() -> None:
    """What categories differ in does not widen the interval; the variance is the textbook's of a stratified mean."""
    easy, hard = np.array([0.9, 1.0, 0.8, 0.9]), np.array([0.1, 0.0, 0.3])
    scores, strata = np.concatenate([easy, hard]), np.array([0] * 4 + [1] * 3)
    spread = bootstrap(scores, range(7), strata, resamples=200_000)[:, 0].var()
    parts = [(len(own) / 7) ** 2 * own.var(ddof=1) / len(own) for own in (easy, hard)]
    assert spread == pytest.approx(sum(parts), rel=0.01)
    assert width(scores, np.arange(7), strata) < 0.5 * width(scores, np.arange(7))


def test_a_stratum_of_one_prompt_joins_another() -> None:
    scores, prompts = np.array([0.0, 1.0, 0.5, 0.2]), np.arange(4)
    together = bootstrap(scores, prompts, [0, 0, 1, 1])
    assert np.ptp(together) > 0
    assert bootstrap(scores, prompts, [0, 1, 2, 3]).var() == pytest.approx(bootstrap(scores, prompts).var(), rel=1e-9)
    assert np.isfinite(bootstrap(scores, prompts, [0, 0, 0, 1])).all()
    with pytest.raises(ValueError, match="needs at least two"):
        bootstrap([0.0, 1.0], [7, 7])


def test_identical_images_of_a_prompt_do_not_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    scores, prompts = rng.normal(size=40), np.arange(40)
    once = bootstrap(scores, prompts)
    four = bootstrap(np.repeat(scores, 4), np.repeat(prompts, 4))
    np.testing.assert_allclose(once, four, atol=1e-12)
    independent = width(np.repeat(scores, 4), np.arange(160))
    assert width(scores, prompts) == pytest.approx(2 * independent, rel=0.1)


def test_the_order_of_images_and_the_other_scores_do_not_matter() -> None:
    rng = np.random.default_rng(2)
    scores, prompts = rng.normal(size=(60, 3)), rng.integers(0, 20, 60)
    strata = prompts % 2
    means, order = bootstrap(scores, prompts, strata), rng.permutation(60)
    np.testing.assert_allclose(bootstrap(scores[order], prompts[order], strata[order]), means, atol=1e-12)
    np.testing.assert_allclose(bootstrap(scores[:, 1], prompts, strata)[:, 0], means[:, 1], atol=1e-12)
    np.testing.assert_allclose(bootstrap(3 * scores - 1, prompts, strata), 3 * means - 1, atol=1e-12)
    assert not np.allclose(bootstrap(scores, prompts, strata, seed=1), means)


def test_unequal_prompts_weigh_as_their_images() -> None:
    means = bootstrap([0.0, 0.0, 0.0, 1.0], [0, 0, 0, 1])[:, 0]
    assert set(means.round(9)) == {0.0, 1.0}  # one of two prompts is drawn
    means = bootstrap([0.0, 0.0, 0.0, 1.0, 1.0], [0, 0, 0, 1, 2])[:, 0]
    assert set(means.round(9)) == {0.0, 0.25, 1.0}  # 0 0, 0 1 (3 of 4 images are 0), 1 1


def test_intervals_over_prompts_cover_the_mean_of_all_prompts() -> None:
    """95 % within 3 standard errors of 400 trials, for the percentile interval over 60 prompts of 3 images."""
    rng, trials, covered, naive = np.random.default_rng(3), 400, 0, 0
    for seed in range(trials):
        ability = rng.beta(0.6, 0.6, 60)  # prompts are either easy or hard; their mean is 0.5
        scores = (rng.random((60, 3)) < ability[:, None]).astype(float).ravel()
        low, high = bounds(bootstrap(scores, np.repeat(np.arange(60), 3), resamples=1000, seed=seed)[:, 0])
        covered += low <= 0.5 <= high
        half = Z95 * scores.std(ddof=1) / math.sqrt(180)
        naive += abs(scores.mean() - 0.5) <= half
    assert covered / trials == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / trials))
    assert naive / trials < 0.87  # 180 images are not 180 prompts


def test_p_values_agree_with_intervals() -> None:
    rng = np.random.default_rng(4)
    for shift in (0.0, 0.1, 0.2, 0.3):
        means = bootstrap(rng.normal(shift, 1, 100), range(100))[:, 0]
        low, high = bounds(means)
        p = p_value(means, 100)
        assert (p < 0.049) <= (low > 0 or high < 0) and (p > 0.051) <= (low <= 0 <= high)
    assert p_value(np.zeros(1000), 100) == 1
    assert p_value(np.ones(999), 100) == pytest.approx(2 / 1000)


def test_few_prompts_prove_nothing() -> None:
    for prompts, least in ((2, 0.5), (5, 0.0625), (6, 0.03125)):
        assert p_value(np.ones(10_000), prompts) == least


def test_p_values_are_uniform_where_nothing_differs() -> None:
    rng, trials = np.random.default_rng(5), 300
    p = [p_value(bootstrap(rng.normal(size=50), range(50), resamples=500)[:, 0], 50) for _ in range(trials)]
    assert np.mean(np.array(p) < 0.05) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / trials))


def test_mcnemar_is_a_coin_tossed() -> None:
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1
    assert mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 8) == mcnemar(8, 1) == pytest.approx(2 * (1 + 9) / 512)
    for gained in range(12):
        expected = min(1.0, 2 * binom.cdf(min(gained, 11 - gained), 11, 0.5))
        assert mcnemar(gained, 11 - gained) == pytest.approx(expected)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.2]) == [0.2] and holm([]) == []
    assert holm([0.5, 0.9, 0.001]) == pytest.approx([1, 1, 0.003])


def test_ten_thousand_resamples_take_less_than_a_second() -> None:
    rng = np.random.default_rng(6)
    scores, prompts = rng.random((1200, 4)), np.arange(1200) // 2
    started = time.process_time()
    assert bootstrap(scores, prompts, prompts % 6).shape == (10_000, 4)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("scores", [[0.0, 0.0, 0.1, 0.02], [1.0, 0.9, 1.0]])
def test_an_interval_ends_where_scores_do(scores: list[float]) -> None:
    free, held = (interval(torch.tensor(scores), bounds=bounds) for bounds in (None, (0.0, 1.0)))
    assert free["low"] < 0 or free["high"] > 1  # type: ignore[operator]
    assert held["mean"] == free["mean"]
    assert held["low"] == max(free["low"], 0) and held["high"] == min(free["high"], 1)  # type: ignore[type-var]
    outside = torch.tensor(scores) + 5  # whoever declares bounds and leaves them
    assert interval(outside, bounds=(0.0, 1.0)) == interval(outside)


def test_bounds_are_kept_with_the_scores(tmp_path: Path) -> None:
    scores = [0.0, 0.0, 0.1, 0.02]
    one = replace(made("one", {"graded": scores, "free": scores}), bounds={"graded": (0.0, 1.0)})
    (tmp_path / "one.json").write_text(measurement.to_json([one]))
    (again,) = measurement.read(tmp_path / "one.json")
    assert again.summary() == one.summary()
    overall = {name: own["overall"]["low"] for name, own in again.summary()["scores"].items()}
    assert overall["graded"] == 0 and overall["free"] < 0
