"""Flow-DPPO's trust region; T1 to T4 are the numbers of the notes on new methods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from steps_off_policy import Case, D, close, ratios, real
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from walks import everything, rollout, velocity

from flowward.algorithms import FlowDPPO, FlowGRPO, GRPOGuard
from flowward.algorithms.algorithm import remarks
from flowward.algorithms.policy_gradient import Outward, Ratio, beyond_trust, log_ratio, ratio_scales, step_nats
from flowward.learning.terms import masked_ratio
from flowward.process.flow import over
from flowward.process.policy import Models

OUTWARD: tuple[Outward, ...] = get_args(Outward)


def stopped(case: Case, trust: float, outward: Outward = "ratio") -> Tensor:
    return beyond_trust(case.v, case.old, case.z, case.advantage, case.q, case.sigma, trust, outward)


def alone(case: Case, step: int, advantage: float) -> Case:
    """One step of each state, with this advantage."""
    return replace(case, z=case.z[:, step : step + 1], advantage=torch.full((5, 1), advantage, dtype=torch.float64))


def still(case: Case, **more: Any) -> Tensor:
    """Whether each state is without a gradient, [B]."""
    return case.slope(**more).flatten(1).abs().amax(1) == 0


# T1: the KL, and the gradient on policy


@pytest.mark.parametrize("off", [1.0, 10.0])  # torch adds 1 and subtracts it again
def test_t1_the_kl_is_that_of_the_gaussians(off: float) -> None:
    """torch's, summed over the elements of a sample: D times the mean, which is what papers compare with delta."""
    case = Case.random(off=off)
    mine, theirs = (over(case.p, case.x) * case.x + over(case.q, v) * v for v in (case.v, case.old))
    sigma = over(case.sigma, mine)
    each = kl_divergence(Normal(theirs, sigma), Normal(mine, sigma)).flatten(1)
    close(step_nats(case.v, case.old, case.q, case.sigma), each.sum(1), rtol=1e-12, atol=0)
    _, gamma = ratio_scales("gaussian", case.q, case.sigma, D)
    close(each.mean(1), gamma * (case.v - case.old).square().flatten(1).mean(1), rtol=1e-12, atol=0)


@ratios
@pytest.mark.parametrize("outward", OUTWARD)
def test_t1_on_policy_the_gradient_is_the_unclipped_one(ratio: Ratio, outward: Outward) -> None:
    """-A alpha z / D, whatever the trust: the KL is 0."""
    case = Case.random(off=0.0)
    alpha, _ = ratio_scales(ratio, case.q, case.sigma, D)
    expected = -(case.advantage / 3 * alpha[:, None])[..., None, None] * case.z / D
    for trust in (1e-12, 0.5):
        found = case.slope(ratio=ratio, trust=trust, outward=outward)
        close(found, expected.sum(1), atol=1e-13, rtol=1e-10)


# T2: what is stopped


def test_t2_without_any_trust_outward_steps_stop_and_others_do_not() -> None:
    """(A, rho) = (+, > 1) and (-, < 1) have a gradient of exactly 0, (+, < 1) and (-, > 1) the full one."""
    case = Case.random(off=0.3)
    for step in range(3):
        above = log_ratio(case.v, case.old, case.z, case.q, case.sigma)[:, step] > 0
        for advantage in (2.0, -0.5):
            one = alone(case, step, advantage)
            outward = above if advantage > 0 else ~above
            assert torch.equal(still(one, trust=0.0), outward)
            free, bare = one.slope(trust=0.0), one.slope(clip=math.inf)
            assert torch.equal(free[~outward], bare[~outward])
            assert (one.loss(trust=0.0)[outward] == 0).all()


def test_t2_within_the_trust_no_step_stops() -> None:
    case = Case.random(off=0.3)
    nats = step_nats(case.v, case.old, case.q, case.sigma)
    within = nats.max().item() * 1.001
    assert torch.equal(case.slope(trust=within), case.slope(clip=math.inf))
    middle = nats.median().item()
    assert torch.equal(stopped(case, middle).any(1) <= (nats >= middle), torch.ones(5, dtype=torch.bool))
    assert stopped(case, middle).any() and not stopped(case, within).any()
    assert torch.equal(stopped(case, middle)[nats >= middle], stopped(case, 0.0)[nats >= middle])


def test_t2_trust_means_the_same_at_every_size() -> None:
    """A sample that is tiled has more nats per step in proportion, as trust / D is the threshold per element."""
    case = Case.random(off=0.3)
    tiled = {name: torch.cat([getattr(case, name)] * 4, -1) for name in ("x", "v", "old", "reference", "z")}
    large = replace(case, **tiled)
    nats = step_nats(case.v, case.old, case.q, case.sigma)
    close(step_nats(large.v, large.old, large.q, large.sigma), 4 * nats)
    middle = nats.median().item()
    assert torch.equal(stopped(case, middle), stopped(large, 4 * middle))


def test_t2_a_ratio_that_overflows_leaves_no_nan() -> None:
    """e^800 is no number: a stopped step has no gradient all the same, and so has one without advantage."""
    case = Case.random(off=0.0)
    case = replace(case, z=100 * case.z[:, :1], q=-torch.ones_like(case.q), sigma=torch.ones_like(case.sigma))
    far = replace(case, v=case.old - case.z[:, 0] / 2)  # the mean comes half the way to where the step went
    assert (log_ratio(far.v, far.old, far.z, far.q, far.sigma, "sum") > 800).all()
    for advantage in (1.0, 0.0):
        given = replace(far, advantage=torch.full((5, 1), advantage, dtype=torch.float64))
        assert (given.loss(ratio="sum", trust=1.0) == 0).all()
        assert (given.slope(ratio="sum", trust=1.0) == 0).all()
    worse = replace(far, advantage=torch.full((5, 1), -1.0, dtype=torch.float64))
    assert (worse.loss(ratio="sum", trust=1.0) == math.inf).all()  # no NaN: the run stops at it, with a sentence
    lost = torch.tensor([800.0, -800.0, 0.1], dtype=torch.float64).requires_grad_()
    found = masked_ratio(lost, torch.ones(3, dtype=torch.float64), torch.tensor([True, False, True]))
    assert found.tolist() == [0, 0, 0]
    assert torch.autograd.grad(found.sum(), lost)[0].tolist() == [0, 0, 0]


# T3: on which side of 1 a ratio falls


def shares(kl: float, size: int, draws: int, seed: int) -> dict[Outward, tuple[float, float]]:
    """Shares of outward steps with A > 0 and with A < 0, where d does not depend on the noise; kl is per element."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(draws, 1, size, generator=generator, dtype=torch.float64)
    old, one = torch.zeros(draws, size, dtype=torch.float64), torch.ones(draws, dtype=torch.float64)
    v = old + math.sqrt(2 * kl)  # with Q = -sigma
    found = {}
    for outward in OUTWARD:
        signs = (beyond_trust(v, old, z, a * one[:, None], -one, one, 0.0, outward) for a in (1.0, -1.0))
        up, down = (each.double().mean().item() for each in signs)
        found[outward] = (up, down)
    return found


def phi(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


def test_t3_the_ratio_is_mostly_below_1() -> None:
    """P(rho > 1) = Phi(-sqrt(kl D / 2)), .325 here; the noise alone is symmetric, the exact test is less so."""
    found, root = shares(1e-4, 4096, 2000, seed=3), math.sqrt(1e-4 * 4096 / 2)
    assert phi(-root) == pytest.approx(0.325, abs=5e-4)
    for outward, mean in (("ratio", -root), ("noise", 0.0), ("gradient", -2 * root)):
        up, down = found[outward]  # type: ignore[index]
        assert up == pytest.approx(phi(mean), abs=0.02)
        assert up + down == pytest.approx(1)


@pytest.mark.parametrize(("kl", "share"), [(1e-5, 0.486), (1e-4, 0.455), (1e-3, 0.360)])
def test_t3_at_the_size_of_the_built_in_world(kl: float, share: float) -> None:
    assert phi(-math.sqrt(kl * 256 / 2)) == pytest.approx(share, abs=1e-3)
    assert shares(kl, 256, 10_000, seed=1)["ratio"][0] == pytest.approx(share, abs=0.015)


def test_t3_gradient_is_the_sign_of_what_the_step_does_to_the_kl() -> None:
    """A step down its loss raises the KL exactly where `gradient` says so; `ratio` is right for a small KL only."""
    agree = dict.fromkeys(OUTWARD, 0.0)
    for off in (0.01, 0.3, 3.0):
        case = Case.random(off=off)
        v = case.v.clone().requires_grad_()
        rise = torch.autograd.grad(step_nats(v, case.old, case.q, case.sigma).sum(), v)[0]
        for step in range(3):
            one = replace(case, z=case.z[:, step : step + 1], advantage=case.advantage[:, step : step + 1])
            towards = (-one.slope(clip=math.inf) * rise).flatten(1).sum(1)
            for outward in OUTWARD:
                agree[outward] += (stopped(one, 0.0, outward)[:, 0] == (towards > 0)).double().mean().item() / 9
    assert agree["gradient"] == pytest.approx(1)
    assert agree["gradient"] > agree["ratio"] > agree["noise"]


# T4: the ends


@ratios
@pytest.mark.parametrize("outward", OUTWARD)
def test_t4_unlimited_trust_is_an_unlimited_clip_to_the_last_bit(ratio: Ratio, outward: Outward) -> None:
    case = Case.random(off=0.1)
    case = replace(case, advantage=case.advantage * torch.tensor([[1.0], [0.0], [1.0], [1.0], [1.0]]))
    trusted, clipped = {"trust": math.inf, "outward": outward}, {"clip": math.inf}
    assert torch.equal(case.loss(ratio=ratio, **trusted), case.loss(ratio=ratio, **clipped))
    assert torch.equal(case.slope(ratio=ratio, **trusted), case.slope(ratio=ratio, **clipped))
    assert torch.equal(case.loss(ratio=ratio, **clipped), case.loss(ratio=ratio, clip=None))


def test_t4_a_batch_that_is_all_stopped_has_no_gradient() -> None:
    case = Case.random(off=0.3)
    sign = log_ratio(case.v, case.old, case.z, case.q, case.sigma).sign()
    away = replace(case, advantage=sign * case.advantage.abs())
    assert (away.slope(trust=1e-9) == 0).all() and (away.loss(trust=1e-9) == 0).all()
    back = replace(case, advantage=-away.advantage)
    assert torch.equal(back.slope(trust=1e-9), back.slope(clip=math.inf))


def test_the_gradient_is_that_of_finite_differences() -> None:
    """With some steps stopped, away from where they begin to be."""
    case, way = Case.random(off=0.2), real(5, 2, 3, seed=5)
    trust = step_nats(case.v, case.old, case.q, case.sigma).median().item() * 0.9
    assert 0 < stopped(case, trust).double().mean() < 1
    ahead, behind = (case.loss(case.v + s * way, trust=trust).sum() for s in (1e-6, -1e-6))
    found = (case.slope(trust=trust) * way).sum()
    assert found.item() == pytest.approx(((ahead - behind) / 2e-6).item(), rel=1e-5)


# Settings and what is watched


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FlowDPPO(clip=1e-4), "either by its clip or by its trust, but both are set"),
        (lambda: FlowGRPO(trust=0.1), "either by its clip or by its trust, but both are set"),
        (lambda: FlowGRPO(clip=None), "either by its clip or by its trust, but neither is set"),
        (lambda: FlowDPPO(trust=None), "either by its clip or by its trust, but neither is set"),
        (lambda: FlowDPPO(trust=0.0), "trust must be a positive number, not 0.0"),
        (lambda: FlowDPPO(trust=math.nan), "trust must be a positive number, not nan"),
        (lambda: FlowDPPO(trust=math.inf), "trust must be a positive number, not inf"),
        (lambda: FlowDPPO(outward="noises"), "unknown test of outward steps 'noises'; did you mean 'noise'"),  # type: ignore[arg-type]
        (lambda: GRPOGuard(outward="noise"), "outward noise is for trust, but steps are limited by their clip"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_any_reverse_algorithm_takes_a_trust() -> None:
    for algorithm in (GRPOGuard(clip=None, trust=0.05), FlowGRPO(clip=None, trust=0.05, outward="noise")):
        batch = everything(algorithm, rollout(algorithm, size=4))
        loss, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
        assert loss.isfinite().all() and "stopped" in watched


@pytest.mark.parametrize("outward", OUTWARD)
def test_the_shares_that_are_stopped_are_watched_by_sign(outward: Outward) -> None:
    algorithm = FlowDPPO(trust=1e-6, outward=outward)
    batch = everything(algorithm, rollout(algorithm, size=12))
    v = 1.01 * velocity(batch.x_t, batch.t, batch.condition)
    loss, watched = algorithm.loss(Models(lambda *_: v, velocity, velocity), batch)
    a, old = batch.advantage[:, 0], batch.known["old"]
    expected = beyond_trust(v, old, batch.z, batch.advantage, batch.q, batch.sigma, 1e-6, outward)[:, 0]
    assert 0.2 < expected.double().mean() < 0.8
    assert torch.equal(watched["stopped"] > 0, expected)
    assert torch.equal(watched["clipped_up"] > 0, expected & (a > 0))
    assert torch.equal(watched["clipped_down"] > 0, expected & (a < 0))
    close(watched["step_nats"], step_nats(v, old, batch.q, batch.sigma))
    assert ((loss == 0) == (expected | (a == 0))).all()
    assert "first_nats_in_trust_max" not in watched


def test_before_the_first_update_no_step_is_stopped_and_rounding_is_told() -> None:
    algorithm = FlowDPPO(trust=1e-6)
    batch = replace(everything(algorithm, rollout(algorithm, size=4)), fresh=True)
    models = Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity)
    _, watched = algorithm.loss(models, batch)
    assert watched["stopped"].sum() == watched["step_nats"].sum() == 0
    v = models.at("policy", batch)
    close(watched["first_nats_in_trust_max"], step_nats(v, batch.known["old"], batch.q, batch.sigma) / 1e-6)
    assert "first_ratio_in_clips_max" not in watched and "first_ratio_max" in watched


def test_one_update_per_rollout_is_told_before_a_run() -> None:
    (said,) = remarks(FlowDPPO(), 1)
    assert said.endswith("use --updates-per-iteration 2 or more")
    assert remarks(FlowDPPO(), 2) == remarks(FlowGRPO(), 1) == remarks(object(), 1) == []
