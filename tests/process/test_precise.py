"""PRECISE, the exact solution of a step with a constant x0; T16 to T21 are the numbers of the notes on new methods."""

from __future__ import annotations

from itertools import pairwise
from math import exp, sqrt

import pytest
import torch
from gaussian_flow import MEAN
from noise_schedules import LEVELS, equal_levels, moved

from flowward.process.flow import grid
from flowward.process.laws import CPS, DDIM, LAWS, ODE, PRECISE, DancePRECISE, DanceSDE, FlowSDE, Law, excess
from flowward.process.plans import Chain, narrowest
from flowward.process.windows import Window

SD3 = grid(10, 3.0, "sd3").tolist()
EXACT = [PRECISE(0.3), PRECISE(0.7), PRECISE(2.5), PRECISE(0.7, held=True), DancePRECISE(0.3), DancePRECISE(1.0)]


def ended(law: Law, levels: list[float], scale: float = 0.5) -> tuple[float, float]:
    """Mean and std at t = 0."""
    mean, var = 0.0, 1.0
    for t, s in pairwise(levels):
        mean, var = moved(law, t, s, mean, var, scale, levels[1])
    return mean, sqrt(var)


def kept(law: Law, t: float, s: float, first: float | None = None) -> float:
    """r, the share of the predicted noise that a step keeps."""
    p, _, _ = law.coefficients(t, s, first)
    return (p - (1 - s)) / s


@pytest.mark.parametrize("law", EXACT)
def test_t16_noise_and_prediction_share_the_level(law: Law) -> None:
    for levels in (SD3, LEVELS, equal_levels(37)):
        for t, s in pairwise(levels):
            p, q, sigma = law.coefficients(t, s, levels[1])
            c = p - (1 - s)
            assert c**2 + sigma**2 == pytest.approx(s**2, abs=1e-12)
            assert q == pytest.approx(c * (1 - t) - t * (1 - s), abs=1e-12)
            assert s == 0 or excess(law, t, s, levels[1]) == pytest.approx(1, abs=1e-12)


def test_t17_at_the_root_of_two_it_is_ddim() -> None:
    for levels in (SD3, LEVELS, equal_levels(37)):
        for t, s in pairwise(levels):
            expected = DDIM(1.0).coefficients(t, s)
            assert PRECISE(sqrt(2)).coefficients(t, s) == pytest.approx(expected, abs=2e-15)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_t17_without_noise_it_is_euler(dtype: torch.dtype) -> None:
    x, v = torch.randn(2, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for t, s in pairwise(SD3):
        p, q, sigma = PRECISE(0.0).coefficients(t, s)
        assert torch.equal(p * x + q * v, x + (s - t) * v) and sigma == 0


STEPS = (10, 50, 200, 1000, 5000)
TABLE = {
    0.3: (0.4286, 0.4847, 0.4961, 0.4992, 0.4998),
    0.7: (0.4188, 0.4816, 0.4953, 0.4990, 0.4998),
    1.0: (0.4070, 0.4775, 0.4941, 0.4988, 0.4998),
    sqrt(2): (0.3865, 0.4693, 0.4916, 0.4982, 0.4996),
    2.0: (0.3565, 0.4534, 0.4861, 0.4970, 0.4994),
}


@pytest.mark.parametrize("a", TABLE)
@pytest.mark.parametrize("held", [False, True])
def test_t18_spread_of_the_samples(a: float, held: bool) -> None:
    """Of N(0.7, 0.5^2), whose mean is exact. The first step does not matter here: its x0 is the mean, whatever x is."""
    for steps, expected in zip(STEPS, TABLE[a], strict=True):
        mean, std = ended(PRECISE(a, held), [1 - number / steps for number in range(steps + 1)])
        assert mean == pytest.approx(MEAN, abs=1e-12)
        assert std == pytest.approx(expected, abs=1e-4)


def test_t18_spread_on_the_grid_of_sd3() -> None:
    found = [ended(law, SD3)[1] for law in (PRECISE(0.7), PRECISE(1.0), CPS(0.8), DDIM(0.5), FlowSDE(0.7))]
    assert found == pytest.approx([0.3463, 0.3356, 0.3077, 0.3525, 0.4210], abs=1e-4)


def test_t18_steps_on_the_grid_of_sd3() -> None:
    """The notes' table, as released (not held): noise of each step, and its gradient |Q| / sigma."""
    steps = [PRECISE(0.7).coefficients(t, s) for t, s in pairwise(SD3)][:9]
    sigmas = [0.960, 0.527, 0.420, 0.358, 0.313, 0.273, 0.227, 0.159, 0.008]
    assert [sigma for *_, sigma in steps] == pytest.approx(sigmas, abs=1e-3)
    pulls = [abs(q) / sigma for _, q, sigma in steps]
    assert pulls[:7] == pytest.approx([0.042, 0.101, 0.155, 0.222, 0.314, 0.456, 0.709], abs=5e-4)
    assert pulls[7:] == pytest.approx([1.34, 33.4], rel=5e-3)
    step, share = narrowest(Chain(law="precise", noise=0.7))
    assert step == 8 and share > 0.9


def test_t19_both_ends_are_finite() -> None:
    """At t = 1 the initial noise is forgotten, whatever a is; at s = 0 the step is to the clean prediction."""
    for a in (1e-3, 0.7, 2.5, 1e6):
        for s in (0.999, 0.96, 0.5, 0.01):
            assert PRECISE(a).coefficients(1.0, s) == pytest.approx((1 - s, -(1 - s), s), abs=1e-15)
        for t in (1.0, 0.7, 1e-9):
            for law in (PRECISE(a), PRECISE(a, held=True), DancePRECISE(a)):
                assert law.coefficients(t, 0.0, 0.9) == (1.0, -t, 0.0)
        tiny = PRECISE(a).coefficients(0.5, 1e-12)
        assert all(abs(number) < 1 + 1e-9 for number in tiny)


@pytest.mark.parametrize("law", EXACT)
def test_t20_a_single_point_keeps_its_level(law: Law) -> None:
    """N((1 - s) x0, s^2) after every step."""
    for levels in (LEVELS, SD3, equal_levels(100)):
        mean, var = 0.0, 1.0
        for t, s in pairwise(levels):
            mean, var = moved(law, t, s, mean, var, 0.0, levels[1])
            assert (mean, var) == pytest.approx(((1 - s) * MEAN, s**2), abs=1e-12)


@pytest.mark.parametrize("law", EXACT)
def test_t21_two_steps_keep_the_product_of_their_shares(law: Law) -> None:
    for t, m, s in ((0.96, 0.7, 0.3), (0.5, 0.499, 0.01), (0.9, 0.5, 0.4999)):
        assert kept(law, t, s) == pytest.approx(kept(law, t, m) * kept(law, m, s), abs=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.5])
def test_t21_held_shares_multiply_from_the_very_first_step(a: float) -> None:
    law = PRECISE(a, held=True)
    for first in (0.97, 0.9, 0.5):
        assert kept(law, 1.0, first, first) == pytest.approx(exp(-(a**2) / 2), abs=1e-12)
        for s in (first / 2, 0.01):
            product = kept(law, 1.0, first, first) * kept(law, first, s)
            assert kept(law, 1.0, s, first) == pytest.approx(product, abs=1e-12)
        between = (1 + first) / 2
        assert 1 > kept(law, 1.0, between, first) > kept(law, 1.0, first, first)


@pytest.mark.parametrize(
    ("exact", "rough"), [(PRECISE(0.7), FlowSDE(0.7)), (PRECISE(1.5), FlowSDE(1.5)), (DancePRECISE(1.0), DanceSDE(1.0))]
)
def test_it_is_the_limit_of_many_short_steps_with_one_clean_prediction(exact: Law, rough: Law) -> None:
    """Euler-Maruyama in 20,000 steps, v being that of a constant x0: noise of a known part, and of a fresh one."""
    t, s, count = 0.8, 0.3, 20_000
    share, fresh = 1.0, 0.0  # of the noise at t, and the variance of what was added
    for k in range(count):
        here, there = (t + (s - t) * n / count for n in (k, k + 1))
        p, _, sigma = rough.coefficients(here, there)
        factor = (p - (1 - there)) / here  # of the noise in the state, eps = noise / here
        share, fresh = share * factor, fresh * factor**2 + sigma**2
    p, _, sigma = exact.coefficients(t, s)
    assert (share * t, sqrt(fresh)) == pytest.approx((p - (1 - s), sigma), rel=5e-4)


@pytest.mark.parametrize(("step", "ratio"), [(0.1, 0.783), (0.01, 0.976), (0.001, 0.9976)])
def test_noise_against_flow_sde(step: float, ratio: float) -> None:
    """At t = 0.6 with a = 0.7."""
    fine, rough = (law.coefficients(0.6, 0.6 - step)[2] for law in (PRECISE(0.7), FlowSDE(0.7)))
    assert fine / rough == pytest.approx(ratio, abs=6e-4)


def test_the_first_step_of_held_is_that_of_flow_sde_to_first_order() -> None:
    for a in (0.05, 0.01):
        fine, rough = (law.coefficients(1.0, 0.96, 0.96) for law in (PRECISE(a, held=True), FlowSDE(a)))
        assert fine[2] / rough[2] == pytest.approx(0.96, abs=a**2)  # FlowSDE's leaves a: too much for the level 0.96
        assert fine[0] == pytest.approx(1 - 0.96 * a**2 / 2, abs=a**4)


def test_what_becomes_of_the_initial_noise_is_told_before_a_run() -> None:
    lines = Chain(law="precise", noise=1.5).remarks()
    assert any(line.startswith("step 0 replaces the initial noise") and "precise-held" in line for line in lines)
    lines = Chain(law="precise-held", noise=0.7).remarks()
    assert any(line.startswith("step 0 keeps 78% of the initial noise") for line in lines)
    assert not any("initial noise" in line for line in Chain(law="dance-precise", noise=0.3).remarks())
    late = Chain(law="precise", noise=1.5, window=Window(2, "frozen", low=1))
    assert not any("initial noise" in line for line in late.remarks())


def test_only_precise_says_so() -> None:
    for name in LAWS:
        said = any("initial noise" in line for line in Chain(law=name, noise=0.5).remarks())
        assert said == name.startswith("precise")
    assert ODE().coefficients(0.5, 0.4) == PRECISE(0.0).coefficients(0.5, 0.4)
