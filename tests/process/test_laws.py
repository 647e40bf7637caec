"""Noise schedules, one step at a time; K1 to K7 are the numbers of section 8 of the notes on the reverse process."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import exp, inf, isfinite, log, nan, pi, sin, sqrt
from typing import get_args

import pytest
import torch
from gaussian_flow import MEAN
from noise_schedules import CHURNED, LEVELS, NOISY, PRESERVING, SCALE, SILENT, equal_levels, moved, velocity

from flowward.process.flow import grid
from flowward.process.laws import (
    CPS,
    DDIM,
    LAWS,
    ODE,
    PRECISE,
    DancePRECISE,
    DanceSDE,
    FlowSDE,
    Law,
    LawName,
    LinearSDE,
)

Step = Callable[[float, float], float]  # (x, v) to the mean of x_s


def weights(mean: Step) -> tuple[float, float]:
    """The factors of x and v in a mean that is linear in both."""
    return mean(1.0, 0.0), mean(0.0, 1.0)


# K1: textbook formulas


def euler_maruyama(g: float, t: float, s: float) -> tuple[Step, float]:
    """dx = (v - g^2 / 2 score) dt + g dw backwards in time, with the score of the predicted x0."""

    def mean(x: float, v: float) -> float:
        score = -(x - (1 - t) * (x - t * v)) / t**2
        return x + (s - t) * (v - g**2 / 2 * score)

    return mean, g * sqrt(t - s)


def flow_sde(a: float, t: float, s: float) -> tuple[Step, float]:
    """As Flow-GRPO's code has it: where the level is 1, the next one stands in for it in 1 - t."""
    return euler_maruyama(sqrt(t / (1 - (s if t == 1 else t))) * a, t, s)


def dance_sde(eta: float, t: float, s: float) -> tuple[Step, float]:
    return euler_maruyama(eta, t, s)


def linear_sde(scale: float, t: float, s: float) -> tuple[Step, float]:
    return euler_maruyama(scale * t, t, s)


def preserving(sigma: float, t: float, s: float) -> tuple[Step, float]:
    """(1 - s) x0 + sqrt(s^2 - sigma^2) eps, with the x0 and the eps that v predicts."""
    return lambda x, v: (1 - s) * (x - t * v) + sqrt(s**2 - sigma**2) * (x + (1 - t) * v), sigma


def cps(eta: float, t: float, s: float) -> tuple[Step, float]:
    return preserving(s * sin(eta * pi / 2), t, s)


def ddim(eta: float, t: float, s: float) -> tuple[Step, float]:
    """Song et al.'s sigma with signal 1 - t and noise t in place of sqrt(alpha_bar) and sqrt(1 - alpha_bar)."""
    return preserving(eta * (s / t) * sqrt(t**2 - ((1 - t) * s / (1 - s)) ** 2), t, s)


def precise(a: float, t: float, s: float) -> tuple[Step, float]:
    """As the authors' code has it: the ratio of the two odds, to the power a^2, is the share of variance that stays."""
    return preserving(s * sqrt(1 - ((s * (1 - t)) / (t * (1 - s))) ** a**2), t, s)


def precise_held(a: float, t: float, s: float) -> tuple[Step, float]:
    return preserving(s * sqrt(1 - exp(-(a**2))), t, s) if t == 1 > s > 0 else precise(a, t, s)


def dance_precise(eta: float, t: float, s: float) -> tuple[Step, float]:
    share = exp(-(eta**2) * (1 / s - 1 / t)) if s else 0.0
    return preserving(s * sqrt(1 - share), t, s)


Formula = Callable[[float, float, float], tuple[Step, float]]
TEXTBOOK: list[tuple[LawName, Formula, list[float]]] = [
    ("flow-sde", flow_sde, [0.3, 0.7, 1.2, 1.8]),
    ("dance-sde", dance_sde, [0.3, 1.0]),
    ("linear-sde", linear_sde, [0.4, 1.0, 1.5]),
    ("ddim", ddim, [0.2, 0.5, 0.9]),
    ("cps", cps, [0.2, 0.5, 0.8]),
    ("precise", precise, [0.3, 0.7, 1.5, 2.5]),
    ("precise-held", precise_held, [0.3, 0.7, 1.5]),
    ("dance-precise", dance_precise, [0.3, 1.0]),
]


@pytest.mark.parametrize(("t", "s"), [*pairwise(LEVELS), (1.0, 0.5), (0.278, 0.0089), (0.5, 0.0)])
@pytest.mark.parametrize(("name", "formula", "strengths"), TEXTBOOK)
def test_k1_laws_are_the_textbook_formulas(
    name: LawName, formula: Formula, strengths: list[float], t: float, s: float
) -> None:
    for strength in strengths:
        mean, sigma = formula(strength, t, s)
        expected = (*weights(mean), sigma)
        assert LAWS[name](strength).coefficients(t, s, first=s) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.2, 1.8])
@pytest.mark.parametrize("first", [0.99, 0.9601, 0.5, 0.0])
def test_k1_flow_sde_takes_the_same_first_step_whatever_the_grid(a: float, first: float) -> None:
    expected = (1 - a**2 / 2, -(1 - first), a)
    assert FlowSDE(a).coefficients(1.0, first, first) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("a", [0.3, 0.7, 1.2])
def test_k1_flow_sde_lengthens_every_other_step_by_the_same_factor(a: float) -> None:
    """Q = -(t - s) (1 + a^2 / 2) and P = 1 - a^2 (t - s) / 2 (1 - t), where `first` changes nothing."""
    for t, s in pairwise(LEVELS[1:]):
        p, q, _ = FlowSDE(a).coefficients(t, s)
        assert p == pytest.approx(1 - a**2 * (t - s) / (2 * (1 - t)), abs=1e-12)
        assert q == pytest.approx(-(t - s) * (1 + a**2 / 2), abs=1e-12)
        assert FlowSDE(a).coefficients(t, s, first=0.96) == FlowSDE(a).coefficients(t, s)


@pytest.mark.parametrize(("t", "s"), [*pairwise(LEVELS[1:]), (0.999, 0.5), (0.278, 0.0089)])
@pytest.mark.parametrize("eta", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_k1_ddim_is_ddpo_on_a_variance_preserving_schedule(eta: float, t: float, s: float) -> None:
    """DDPO's step for alpha_bar = (1 - t)^2 / ((1 - t)^2 + t^2), on states divided by a + b to make them the flow's."""

    def shares(level: float) -> tuple[float, float]:
        alpha_bar = (1 - level) ** 2 / ((1 - level) ** 2 + level**2)
        return sqrt(alpha_bar), sqrt(1 - alpha_bar)

    (a, b), (a_s, b_s) = shares(t), shares(s)
    sigma = eta * sqrt(b_s**2 / b**2 * (1 - a**2 / a_s**2))
    assert (b / (a + b), b_s / (a_s + b_s)) == pytest.approx((t, s), abs=1e-15)

    def mean(x: float, v: float) -> float:
        state, eps = (a + b) * x, x + (1 - t) * v
        x0 = (state - b * eps) / a
        return (a_s * x0 + sqrt(max(b_s**2 - sigma**2, 0.0)) * eps) / (a_s + b_s)

    expected = (*weights(mean), sigma / (a_s + b_s))
    assert DDIM(eta).coefficients(t, s) == pytest.approx(expected, abs=1e-12)


# K2: without noise


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("law", SILENT)
def test_k2_without_noise_every_law_is_euler_to_the_last_bit(law: Law, dtype: torch.dtype) -> None:
    x, v = torch.randn(2, 512, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    for levels in (LEVELS, grid(10).tolist(), grid(37, 1.0, "linear").tolist()):
        for t, s in pairwise(levels):
            p, q, sigma = law.coefficients(t, s, levels[1])
            assert torch.equal(p * x + q * v, x + (s - t) * v)
            assert sigma == 0


@pytest.mark.parametrize("law", SILENT)
def test_k2_without_noise_no_law_needs_to_know_the_first_level(law: Law) -> None:
    assert law.coefficients(1.0, 0.9) == ODE().coefficients(1.0, 0.9)


# K5: relations between laws


@pytest.mark.parametrize("law", [*PRESERVING, *CHURNED])
def test_k5_noise_and_prediction_share_the_level(law: Law) -> None:
    """c^2 + sigma^2 = s^2."""
    for t, s in [*pairwise(LEVELS), *pairwise(grid(10).tolist())]:
        p, q, sigma = law.coefficients(t, s, LEVELS[1])
        c = p - (1 - s)
        assert c**2 + sigma**2 == pytest.approx(s**2, abs=1e-15)
        assert q == pytest.approx(c * (1 - t) - t * (1 - s), abs=1e-15)


def test_k5_ddim_of_full_noise_is_sde_dpm_solver() -> None:
    """The first-order one: s / t e^{-h} x + (1 - s) (1 - e^{-2h}) x0 + s sqrt(1 - e^{-2h}) z."""
    for t, s in pairwise(LEVELS[1:-1]):
        h = log((1 - s) / s) - log((1 - t) / t)
        mean = weights(lambda x, v: s / t * exp(-h) * x + (1 - s) * (1 - exp(-2 * h)) * (x - t * v))  # noqa: B023
        expected = (*mean, s * sqrt(1 - exp(-2 * h)))
        assert DDIM(1.0).coefficients(t, s) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(("step", "ratio"), [(1e-1, 0.680), (1e-2, 0.961), (1e-3, 0.996)])
def test_k5_ddim_is_close_to_flow_sde_in_small_steps(step: float, ratio: float) -> None:
    """In the noise of FlowSDE(sqrt(2) eta), at eta 0.5 and t = 0.6."""
    smooth, rough = (law.coefficients(0.6, 0.6 - step)[2] for law in (DDIM(0.5), FlowSDE(sqrt(2) * 0.5)))
    assert smooth / rough == pytest.approx(ratio, abs=5e-4)


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0])
def test_k5_ddim_tends_to_flow_sde_everywhere(eta: float) -> None:
    """In all three coefficients, to what is small against them."""
    for t in (0.95, 0.6, 0.2):
        p, q, sigma = DDIM(eta).coefficients(t, t - 1e-6)
        expected = FlowSDE(sqrt(2) * eta).coefficients(t, t - 1e-6)
        assert (1 - p, q, sigma) == pytest.approx((1 - expected[0], *expected[1:]), rel=2e-4)


# K6: both ends

FLOWS = [law for law in NOISY if isinstance(law, FlowSDE)]


@pytest.mark.parametrize("law", [*NOISY, *SILENT, *CHURNED])
@pytest.mark.parametrize("levels", [LEVELS, grid(10).tolist(), grid(1).tolist(), grid(2).tolist(), equal_levels(1000)])
def test_k6_numbers_are_finite_at_both_ends(law: Law, levels: list[float]) -> None:
    for t, s in pairwise(levels):
        p, q, sigma = law.coefficients(t, s, levels[1])
        assert all(type(number) is float and isfinite(number) for number in (p, q, sigma))
        assert sigma >= 0
        assert q < 0


@pytest.mark.parametrize("a", [1e-3, 0.7])
def test_k6_flow_sde_must_know_the_first_level(a: float) -> None:
    """At t = 1 only."""
    with pytest.raises(ValueError, match="singular at t = 1"):
        FlowSDE(a).coefficients(1.0, 0.9)
    FlowSDE(a).coefficients(0.9, 0.8)


def test_k6_precise_must_know_it_to_hold_the_noise_there() -> None:
    with pytest.raises(ValueError, match="PRECISE with `held` needs `first`, the first time below 1, at t = 1"):
        PRECISE(held=True).coefficients(1.0, 0.9)
    PRECISE(held=True).coefficients(0.9, 0.8)


@pytest.mark.parametrize("law", [law for law in [*NOISY, *CHURNED] if law not in (*FLOWS, PRECISE(held=True))])
def test_k6_no_other_law_does(law: Law) -> None:
    for s in (0.96, 0.5, 0.0):
        assert law.coefficients(1.0, s) == law.coefficients(1.0, s, first=0.97)


@pytest.mark.parametrize("law", [*PRESERVING, *CHURNED, *SILENT])
def test_k6_last_step_lands_on_the_clean_prediction(law: Law) -> None:
    for t in (0.9, 0.3, 0.0089):
        assert law.coefficients(t, 0.0) == (1.0, -t, 0.0)


@pytest.mark.parametrize("law", [law for law in NOISY if law not in PRESERVING])
def test_k6_last_step_of_euler_maruyama_is_noisy(law: Law) -> None:
    assert law.coefficients(0.3, 0.0)[2] > 0


# K7: by drawing

COUNT = 2**16


@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.6, 0.5), (0.3, 0.05)])
@pytest.mark.parametrize(("name", "formula", "strengths"), TEXTBOOK)
def test_k7_draws_of_one_step(name: LawName, formula: Formula, strengths: list[float], t: float, s: float) -> None:
    """From one state and from the data's states, at five standard errors of mean and variance."""
    rng = torch.Generator().manual_seed(7)
    x0, eps, z = torch.randn(3, COUNT, generator=rng, dtype=torch.float64)
    law, (mean, sigma) = LAWS[name](strengths[-1]), formula(strengths[-1], t, s)
    p, q, noise = law.coefficients(t, s, s)

    def agree(drawn: torch.Tensor, mean: float, var: float) -> None:
        assert drawn.mean().item() == pytest.approx(mean, abs=5 * sqrt(var / COUNT))
        assert drawn.var().item() == pytest.approx(var, abs=5 * var * sqrt(2 / COUNT))

    agree(p * 0.4 + q * velocity(0.4, t) + noise * z, mean(0.4, velocity(0.4, t)), sigma**2)
    x = (1 - t) * (MEAN + SCALE * x0) + t * eps
    v = (velocity(1.0, t) - velocity(0.0, t)) * x + velocity(0.0, t)
    before = (1 - t) * MEAN, (1 - t) ** 2 * SCALE**2 + t**2
    agree(p * x + q * v + noise * z, *moved(law, t, s, *before, SCALE, s))


# Names and strengths


def test_laws_by_name() -> None:
    """Each takes its strength, and is compared by it."""
    made = [LAWS[name](0.25) for name in get_args(LawName)]
    sdes: list[Law] = [FlowSDE(a=0.25), DanceSDE(eta=0.25), LinearSDE(scale=0.25), DDIM(eta=0.25), CPS(eta=0.25)]
    assert made == [*sdes, PRECISE(a=0.25), PRECISE(a=0.25, held=True), DancePRECISE(eta=0.25)]
    assert set(LAWS) == set(get_args(LawName))


@pytest.mark.parametrize("strength", [-0.1, nan, inf, -inf])
@pytest.mark.parametrize("name", LAWS)
def test_a_law_refuses_a_strength_that_is_none(name: LawName, strength: float) -> None:
    with pytest.raises(ValueError, match=rf"the noise of \w+ must .*, not {strength}"):
        LAWS[name](strength)


@pytest.mark.parametrize("name", ["ddim", "cps"])
def test_a_share_of_noise_is_at_most_one(name: LawName) -> None:
    """But the strength of an SDE may be more."""
    LAWS[name](1.0)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], not 1\.01"):
        LAWS[name](1.01)
    assert FlowSDE(1.8).coefficients(0.5, 0.4)[2] > FlowSDE(1.0).coefficients(0.5, 0.4)[2]
