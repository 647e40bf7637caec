"""Churned steps: their coefficients, marginals and correlations."""

from __future__ import annotations

from itertools import pairwise
from math import inf, nan, prod, sqrt

import pytest
import torch
from gaussian_flow import MEAN, flow, gaussian, variance

from flowward.process.flow import grid
from flowward.process.laws import ODE, Churn, Law

LEVELS = [1.0, 0.96, 0.7, 0.3, 0.0089, 0.0]


@pytest.mark.parametrize("gamma", [0.0, 0.0025, 0.1, 1.0])
def test_forward_03_churn_algebra(gamma: float) -> None:
    """What is left of the signal is 1 - s, both noises together are s, and EDM's levels differ by 1 + gamma."""
    for t, s in pairwise(LEVELS):
        p, q, sigma = Churn(gamma).coefficients(t, s)
        signal, old = p * (1 - t) - q, p * t + q  # of x0 and eps, where x = (1 - t) x0 + t eps and v = eps - x0
        assert signal == pytest.approx(1 - s, abs=1e-15)
        assert old == pytest.approx(s / (1 + gamma), abs=1e-15)
        assert old**2 + sigma**2 == pytest.approx(s**2, abs=1e-15)
        r = t + q / p  # where the Euler step ends
        assert (1 - r) / (1 + gamma * r) == pytest.approx(1 - s, abs=1e-14)
        assert s / (1 - s) == pytest.approx((1 + gamma) * r / (1 - r), abs=1e-13)
        assert sigma == pytest.approx(s * sqrt(1 - (1 + gamma) ** -2), abs=1e-15)


def test_forward_03_churn_of_the_prior() -> None:
    """0.0706 of fresh noise at FDFO's churn, and N(0, I) remains."""
    factor, sigma = Churn().prior()
    assert factor**2 + sigma**2 == pytest.approx(1, abs=1e-15)
    assert sigma == pytest.approx(0.0706, abs=5e-5)
    assert factor == 1 / 1.0025


@pytest.mark.parametrize(("scale", "correlation"), [(0.5, 0.8489), (1.0, 0.8665), (2.0, 0.8896)])
def test_forward_04_churn_marginal(scale: float, correlation: float) -> None:
    """With the exact flow for Euler, 40 churned levels keep mean and std, and pairs end as correlated as predicted."""
    law, times = Churn(), grid(40).tolist()
    factor, sigma = law.prior()
    mean, var, cov = torch.zeros(1).double(), factor**2 + sigma**2, factor**2
    kept = [factor**2]
    for t, s in pairwise(times):
        p, q, sigma = law.coefficients(t, s)
        r = t + q / p
        mean = p * flow(mean, t, r, scale)
        gain = p**2 * variance(r, scale) / variance(t, scale)
        var, cov = gain * var + sigma**2, gain * cov
        assert mean.item() == pytest.approx((1 - s) * MEAN, abs=1e-12)
        assert var == pytest.approx(variance(s, scale), abs=1e-12)
        kept.append(1 - sigma**2 / variance(s, scale))
    assert sqrt(var) == pytest.approx(scale, abs=1e-12)
    assert cov / var == pytest.approx(prod(kept), abs=1e-12)
    assert cov / var == pytest.approx(correlation, abs=5e-5)


def test_churned_euler_makes_the_pairs_of_the_notes() -> None:
    """Steps as FDFO takes them: Euler narrows the data to 0.954, but keeps the correlation and relative difference."""
    rng, law, times = torch.Generator().manual_seed(0), Churn(), grid(40).tolist()
    noise = [torch.randn(20_000, 1, generator=rng, dtype=torch.float64) for _ in range(83)]
    start, pair = noise.pop(), []
    for _ in range(2):
        factor, sigma = law.prior()
        x = factor * start + sigma * noise.pop()
        for t, s in pairwise(times):
            p, q, sigma = law.coefficients(t, s)
            x = p * x + q * gaussian(1.0)(x, t) + sigma * noise.pop()
        pair.append(x)
    std = torch.cat(pair).std().item()
    assert std == pytest.approx(0.954, abs=0.015)
    assert torch.corrcoef(torch.cat(pair, 1).T)[0, 1].item() == pytest.approx(0.867, abs=0.01)
    assert ((pair[0] - pair[1]) / 2).std().item() / std == pytest.approx(0.258, abs=0.008)


@pytest.mark.parametrize("law", [ODE(), Churn(), Churn(1.0)])
def test_the_last_step_adds_no_noise(law: Law) -> None:
    """s = 0 lands on the clean prediction."""
    assert law.coefficients(0.3, 0.0) == (1.0, -0.3, 0.0)
    assert law.coefficients(1.0, 0.0, first=0.9) == (1.0, -1.0, 0.0)


def test_churn_by_nothing_is_the_ode() -> None:
    for t, s in pairwise(LEVELS):
        assert Churn(0.0).coefficients(t, s) == ODE().coefficients(t, s)
    assert Churn(0.0).prior() == (1.0, 0.0)


@pytest.mark.parametrize("gamma", [-0.0025, nan, inf])
def test_churn_refuses_what_it_cannot_do(gamma: float) -> None:
    with pytest.raises(ValueError, match=r"the noise of churn \(gamma\) must lie in"):
        Churn(gamma)
