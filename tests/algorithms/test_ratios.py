"""Ratios of the reverse-process family; L1 to L3 are numbers of section 8 of the notes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from steps_off_policy import RATIOS, Case, D, close, ratios, real
from torch import Tensor
from walks import drawn, everything, family, rollout, velocity

from flowward import ALGORITHMS
from flowward.algorithms import FlowGRPO
from flowward.algorithms.policy_gradient import Ratio, log_ratio, ratio_scales
from flowward.process.flow import over
from flowward.process.laws import LAWS, FlowSDE
from flowward.process.policy import Condition, Models
from flowward.process.rollout import Rollout

# L1 and L2: ratios


@pytest.mark.parametrize("law", [FlowSDE(0.7), *(kind(0.5) for kind in LAWS.values())])
@pytest.mark.parametrize("off", [1e-3, 1.0])
def test_l1_ratios_are_those_of_densities(law: Any, off: float) -> None:
    """`sum` is torch's, `gaussian` its mean, `cps` 2 sigma^2 times that (a normaliser cancels)."""
    case = Case.random(law, off)
    expected = case.density(case.v) - case.density(case.old)
    found = {ratio: log_ratio(case.v, case.old, case.z, case.q, case.sigma, ratio) for ratio in RATIOS}
    close(found["sum"], expected, atol=1e-10, rtol=1e-8)
    close(found["gaussian"], expected / D, atol=1e-10, rtol=1e-8)
    close(found["cps"], expected / D * 2 * case.sigma[:, None] ** 2, atol=1e-10, rtol=1e-8)


@ratios
def test_l2_log_rho_is_alpha_mean_zd_minus_gamma_mean_dd(ratio: Ratio) -> None:
    """From the residuals r = x_s - P x - Q v of the paper's own expressions."""
    case = Case.random(off=0.3)
    centre = over(case.p, case.x) * case.x + over(case.q, case.v) * case.v
    drew = over(case.p, case.x) * case.x + over(case.q, case.old) * case.old
    r, r_old = case.x_s - centre[:, None], case.x_s - drew[:, None]
    squares = (r_old.flatten(2) ** 2 - r.flatten(2) ** 2).mean(2)
    shift = (case.z * (centre - drew)[:, None]).flatten(2).mean(2)
    variance = 2 * case.sigma[:, None] ** 2
    expected = {
        "gaussian": squares / variance,
        "sum": D * squares / variance,
        "cps": squares,
        "guard": shift,
    }
    found = log_ratio(case.v, case.old, case.z, case.q, case.sigma, ratio)
    close(found, expected[ratio], atol=1e-11, rtol=1e-9)
    alpha, gamma = ratio_scales(ratio, case.q, case.sigma, D)
    d = (case.v - case.old)[:, None]
    along = (case.z * d).flatten(2).mean(2)
    close(found, alpha[:, None] * along - gamma[:, None] * (d**2).flatten(2).mean(2), atol=1e-12, rtol=1e-10)


def test_l2_guard_is_the_biased_ratio_put_right() -> None:
    """As published: log rho + mean(dmu^2) / 2 sigma^2, times sigma."""
    case = Case.random(off=0.3)
    plain = log_ratio(case.v, case.old, case.z, case.q, case.sigma, "gaussian")
    moved = (over(case.q, case.v) * (case.v - case.old)).flatten(1).square().mean(1)
    expected = case.sigma[:, None] * (plain + (moved / (2 * case.sigma**2))[:, None])
    close(log_ratio(case.v, case.old, case.z, case.q, case.sigma, "guard"), expected, atol=1e-12, rtol=1e-10)


@ratios
def test_l2_expectations_over_the_noise(ratio: Ratio) -> None:
    """0 for guard, and -gamma mean(d^2) below 0 for the others: by antithetic noise, exactly."""
    case = Case.random(off=0.3)
    both = torch.cat([case.z, -case.z], 1)
    found = log_ratio(case.v, case.old, both, case.q, case.sigma, ratio).mean(1)
    _, gamma = ratio_scales(ratio, case.q, case.sigma, D)
    close(found, -gamma * (case.v - case.old).square().flatten(1).mean(1), atol=1e-13, rtol=1e-10)
    assert (found.abs() < 1e-15).all() if ratio == "guard" else (found < 0).all()


@ratios
def test_l2_a_step_without_noise_has_no_ratio(ratio: Ratio) -> None:
    case = Case.random()
    silent = case.sigma.clone()
    silent[3] = 0
    with pytest.raises(ValueError, match="a step without noise has no density, so it has no ratio"):
        replace(case, sigma=silent).loss(ratio=ratio)


# L3: exactly 1 at the same parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@ratios
def test_l3_log_ratio_is_exactly_zero_at_the_same_parameters(ratio: Ratio, dtype: torch.dtype) -> None:
    """Whatever the velocities were rounded to."""
    case = Case.random()
    found = log_ratio(case.old.to(dtype), case.old.to(dtype).clone(), case.z.to(dtype), case.q, case.sigma, ratio)
    assert found.dtype == torch.float64
    assert (found == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@family
def test_l3_before_the_first_update_every_ratio_is_one(name: str, dtype: torch.dtype) -> None:
    """By the recorded velocities of a network in half precision as well, in batches of another size; so the loss is
    -w A, and nothing is clipped."""
    algorithm = ALGORITHMS[name]()
    algorithm = replace(algorithm, beta=0.0, rollout=replace(algorithm.rollout, guidance=1.0))

    def rounded(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return velocity(x.to(dtype), t.to(dtype), Condition({"id": condition.tensors["id"].to(dtype)})).float()

    size = max(4, algorithm.rollout.leaves)
    found = drawn(algorithm.rollout.at(0, 0), size=size, field=rounded)
    group = torch.arange(2).repeat_interleave(size)
    done = Rollout.of([found], Condition({"id": torch.arange(2.0)}), group, algorithm.rollout.levels)
    reward = real(len(group)).float()
    batch = everything(algorithm, replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort)))
    bounded = batch.advantage.clamp(-5, 5)
    for fresh in (True, False):
        for part in replace(batch, fresh=fresh).split(3):
            _, watched = algorithm.loss(Models(rounded, rounded, rounded), part)
            assert (watched["log_ratio"] == 0).all()
        loss, watched = algorithm.loss(Models(rounded, rounded, rounded), replace(batch, fresh=fresh))
        close(loss, -(batch.weight * bounded).sum(1), atol=1e-12, rtol=1e-12)
        assert watched["clipped_up"].sum() == watched["clipped_down"].sum() == 0
        assert ("first_ratio_max" in watched) == fresh
        assert not fresh or watched["first_ratio_max"].max() == 0


def test_l3_on_the_first_pass_the_new_value_stands_for_the_old() -> None:
    """Where sampling and training differ in the last bits, the ratio is still 1, and the difference is reported."""
    algorithm = FlowGRPO(beta=0.0)
    batch = everything(algorithm, rollout(algorithm, size=4))
    off = replace(batch, known={"old": batch.known["old"] * 1.001})
    models = Models(velocity, velocity, velocity)
    fresh, watched = algorithm.loss(models, replace(off, fresh=True))
    assert torch.equal(fresh, algorithm.loss(models, replace(batch, fresh=True))[0])
    assert watched["first_ratio_max"].max() > 1e-5
    assert watched["log_ratio"].abs().max() == watched["clipped_up"].max() == watched["clipped_down"].max() == 0
    assert not torch.equal(algorithm.loss(models, off)[0], fresh)
