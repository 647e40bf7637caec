"""The reverse-process family as a whole: divergences (L6 of section 8 of the notes), settings, and what is watched."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from steps_off_policy import DIVERGENCES, RATIOS, Case, close
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from walks import everything, family, rollout, velocity

from flowward import ALGORITHMS
from flowward.algorithms import DDPO, G2RPO, DanceGRPO, FlowGRPO, FlowGRPOFast, GRPOGuard, MixGRPO, TempFlowGRPO
from flowward.algorithms.policy_gradient import CLIPS, Divergence, PolicyGradient, Ratio, divergence_scale, log_ratio
from flowward.learning.credit import ZScore
from flowward.learning.moves import RandomSteps
from flowward.process.flow import over
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Condition, Models
from flowward.process.windows import Window

# L6: divergences


def test_l6_divergences_by_name() -> None:
    """`exact` is torch's, per element; `per-noise` that times t - s, `state` without 1 / 2 sigma^2, `velocity` bare."""
    case = Case.random(off=0.5)
    base = over(case.p, case.x) * case.x
    mine, theirs = (base + over(case.q, v) * v for v in (case.v, case.reference))
    sigma = over(case.sigma, mine)
    exact = kl_divergence(Normal(mine, sigma), Normal(theirs, sigma)).flatten(1).mean(1)
    square = (case.v - case.reference).square().flatten(1).mean(1)
    expected = {
        "exact": exact,
        "per-noise": exact * case.length,
        "state": (mine - theirs).square().flatten(1).mean(1),
        "velocity": square,
    }
    for kind in DIVERGENCES:
        close(divergence_scale(kind, case.q, case.sigma, case.length) * square, expected[kind])
        silent = replace(case, advantage=0 * case.advantage)
        found = silent.loss(v_ref=case.reference, beta=0.3, divergence=kind)
        close(found, 0.3 * expected[kind], atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("kind", DIVERGENCES)
def test_l6_a_divergence_pulls_to_the_reference(kind: Divergence) -> None:
    """Downhill is towards it; at it, nothing."""
    case = Case.random(off=0.5)
    silent = replace(case, advantage=0 * case.advantage)
    pull = -silent.slope(v_ref=case.reference, beta=0.3, divergence=kind)
    cosine = torch.cosine_similarity(pull.flatten(1), (case.reference - case.v).flatten(1))
    assert (cosine > 1 - 1e-9).all()
    assert (silent.slope(case.reference, v_ref=case.reference, beta=0.3, divergence=kind) == 0).all()


def test_l6_the_weight_of_a_step_is_not_that_of_its_divergence() -> None:
    """Once per state, whatever the steps weigh and however many there are: beta means the same everywhere."""
    case = Case.random(off=0.5)
    with_it, without = (
        case.loss(v_ref=ref, beta=0.3, weight=torch.full((5, 3), 7.0, dtype=torch.float64))
        for ref in (case.reference, None)
    )
    close(with_it - without, case.loss(v_ref=case.reference, beta=0.3) - case.loss())


def test_l6_flow_grpo_and_tempflow_mean_different_betas() -> None:
    """0.04 in Flow-GRPO's units is 0.04 (t - s) in TempFlow's: about 0.004 with ten steps."""
    flow = FlowGRPO(rollout=Chain(10, 1.0, "linear"))
    exact = replace(flow, beta=0.004, divergence="exact")
    done = rollout(flow, size=4)
    batch = replace(everything(flow, done), advantage=torch.zeros(72, 1, dtype=torch.float64))
    models = Models(lambda x, t, c: 1.1 * velocity(x, t, c), velocity, velocity)
    close(flow.loss(models, batch)[0], exact.loss(models, batch)[0])


# P5: one forward for all children of a state


def test_p5_one_forward_per_state_is_as_good_as_many() -> None:
    """G2RPO's 12 children of a state, together or each with a forward of its own: the same loss and gradient."""
    algorithm = G2RPO(beta=0.1)
    batch = everything(algorithm, rollout(algorithm))
    weight = torch.tensor(0.52, requires_grad=True)
    calls: list[int] = []

    def policy(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        calls.append(len(x))
        return weight * x + velocity(x, t, condition) - 0.5 * x

    models = Models(policy, velocity, velocity)
    together = algorithm.loss(models, batch)[0].sum()
    gradient = torch.autograd.grad(together, weight)[0]
    assert calls == [16]
    apart = [
        replace(
            batch, z=batch.z[:, k : k + 1], advantage=batch.advantage[:, k : k + 1], weight=batch.weight[:, k : k + 1]
        )
        for k in range(12)
    ]
    total = torch.stack([replace(algorithm, beta=0.1 / 12).loss(models, part)[0].sum() for part in apart]).sum()
    close(total, together, atol=1e-9, rtol=1e-9)
    close(torch.autograd.grad(total, weight)[0], gradient, atol=1e-5, rtol=1e-5)


# A3: what teaches nothing


@family
def test_a3_steps_without_advantage_keep_their_place(name: str) -> None:
    """They add nothing, and the normaliser is that of all: the same as leaving them out and dividing as before."""
    algorithm = replace(ALGORITHMS[name](), beta=0.0)
    done = rollout(algorithm, prompts=3, size=2 * max(2, algorithm.rollout.leaves))
    reward = torch.where(done.group == 1, 0.7, done.reward)  # one prompt teaches nothing
    done = replace(done, reward=reward, advantage=algorithm.credit(reward, done.cohort))
    assert (done.advantage[done.group == 1] == 0).all()
    points = algorithm.points(done, ("",))
    models = Models(lambda x, t, c: 1.001 * velocity(x, t, c), velocity, velocity)
    whole = points.take(torch.arange(len(points)))
    loss, _ = algorithm.loss(models, whole)
    masked = (whole.advantage == 0).all(1)
    assert masked.sum() >= len(points) / 3
    assert (loss[masked] == 0).all()
    kept = algorithm.loss(models, points.take((~masked).nonzero().flatten()))[0]
    close(kept.sum() / len(points), loss.mean(), atol=1e-15, rtol=1e-12)


# Settings


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: GRPOGuard(clip=1e-4), "clip 0.0001 does not fit the ratio 'guard'"),
        (
            lambda: FlowGRPO(clip=0.2),
            "clip 0.2 does not fit the ratio 'gaussian'; its clips lie between 1e-07 and 0.01",
        ),
        (lambda: FlowGRPO(ratio="sum"), "clip 0.0001 does not fit the ratio 'sum'"),
        (lambda: FlowGRPOFast(ratio="guard", clip=1e-3), "does not fit the ratio 'guard'"),
        (lambda: FlowGRPO(clip=0.0), "clip must be a positive number"),
        (lambda: FlowGRPO(clip=-1e-4), "clip must be a positive number"),
        (lambda: FlowGRPO(advantage_clip=0.0), "advantage_clip must be a positive number"),
        (lambda: FlowGRPO(beta=-0.1), "beta must not be negative"),
        (lambda: FlowGRPO(beta=math.nan), "beta must not be negative"),
        (lambda: FlowGRPO(ratio="gausian"), "unknown ratio 'gausian'; did you mean 'gaussian'"),
        (lambda: FlowGRPO(divergence="KL"), "unknown divergence 'KL'"),
        (lambda: RandomSteps("noisy"), "unknown step weight 'noisy'; did you mean 'noise'"),
        (lambda: RandomSteps(views="min"), "unknown way to combine views 'min'"),
    ],
)
def test_bad_settings_are_refused_in_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


@family
def test_the_papers_clips_are_within_bounds(name: str) -> None:
    algorithm = ALGORITHMS[name]()
    low, high = CLIPS[algorithm.ratio]
    assert algorithm.trust if algorithm.clip is None else 5 * low < algorithm.clip < high / 5


@pytest.mark.parametrize("weight", ["even", "noise", "per-time"])
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("draw", [Chain(5), Chain(5, law="cps", window=Window(2)), Branches(5, fanout=3)])
def test_any_combination_is_an_algorithm(weight: Any, ratio: Ratio, draw: Any) -> None:
    """Law, tree, ratio, weight and divergence go together."""
    for divergence, clip in zip(DIVERGENCES, 2 * CLIPS[ratio], strict=True):
        algorithm = PolicyGradient(
            draw, ZScore("group"), RandomSteps(weight), ratio, clip, beta=0.1, divergence=divergence
        )
        batch = everything(algorithm, rollout(algorithm, size=4 * draw.leaves))
        loss, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
        assert loss.isfinite().all()
        assert all(value.isfinite().all() for value in watched.values())


# What is watched


def test_watched_numbers_are_of_all_steps_and_of_each() -> None:
    """Averages of the parts are the whole's; numbers of a step concern its own states."""
    algorithm = FlowGRPO()
    batch = everything(algorithm, rollout(algorithm, size=4))
    _, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
    for name in ("log_ratio", "clipped_up", "clipped_down", "pull", "divergence"):
        assert watched[name].shape == (72,)
        parts = torch.cat([watched[f"{name}@{number}"] for number in range(9)])
        assert parts.sum().item() == pytest.approx(watched[name].sum().item())
        assert [len(watched[f"{name}@{number}"]) for number in range(9)] == [8] * 9
    assert not any(value.requires_grad for value in watched.values())


def test_the_shares_that_are_clipped_are_told_by_sign() -> None:
    algorithm = MixGRPO(rollout=Chain(6, window=Window(2)), clip=1e-7)
    batch = everything(algorithm, rollout(algorithm, size=6))
    _, watched = algorithm.loss(Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity), batch)
    ratio, a = watched["log_ratio"], batch.advantage[:, 0]
    assert torch.equal(watched["clipped_up"] > 0, (ratio > 1e-7) & (a > 0))
    assert torch.equal(watched["clipped_down"] > 0, (ratio < -1e-7) & (a < 0))
    assert 0.1 < (watched["clipped_up"] + watched["clipped_down"]).mean() < 0.9


def test_children_that_are_not_there_are_not_watched() -> None:
    """A state with fewer children than others is filled up, with noise here: no figure, and no loss, knows of it."""
    algorithm = FlowGRPO()
    batch = replace(everything(algorithm, rollout(algorithm, size=4)), fresh=True)
    models = Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity)
    fill = {name: torch.zeros_like(getattr(batch, name)) for name in ("advantage", "weight")} | {"z": 9 * batch.z}
    filled = replace(batch, **{name: torch.cat([getattr(batch, name), more], 1) for name, more in fill.items()})
    for fresh in (True, False):
        loss, watched = algorithm.loss(models, replace(batch, fresh=fresh))
        same, also = algorithm.loss(models, replace(filled, fresh=fresh))
        close(same, loss)
        for name, value in watched.items():
            close(also[name], value)


def test_how_far_a_first_ratio_is_off_has_no_sign() -> None:
    algorithm = FlowGRPO()
    batch = replace(everything(algorithm, rollout(algorithm, size=4)), fresh=True)
    models = Models(lambda x, t, c: 1.01 * velocity(x, t, c), velocity, velocity)
    v = models.at("policy", batch)
    apart = log_ratio(v, batch.known["old"], batch.z, batch.q, batch.sigma)[:, 0]
    assert (apart > 0).any() and (apart < 0).any()
    close(algorithm.loss(models, batch)[1]["first_ratio_max"], apart.abs())


def test_pull_is_the_length_of_the_gradient_on_v() -> None:
    """On policy; it says which step is learnt from, and falls where noise is large (section 3 of the notes)."""
    algorithm = replace(FlowGRPO(), beta=0.0)
    batch = replace(everything(algorithm, rollout(algorithm, size=12)), fresh=True)
    v = velocity(batch.x_t, batch.t, batch.condition).requires_grad_()
    loss, watched = algorithm.loss(Models(lambda *_: v, velocity, velocity), batch)
    gradient = torch.autograd.grad(loss.sum(), v)[0]
    close(watched["pull"].float(), gradient.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-7)


PROFILES: dict[Any, list[float]] = {  # of one step's gradient over their mean, on SD3.5's grid (notes, section 3)
    FlowGRPO: [0.13, 0.18, 0.30, 0.43, 0.60, 0.85, 1.23, 1.89, 3.40],
    TempFlowGRPO: [0.29, 0.43, 0.51, 0.62, 0.76, 0.96, 1.26, 1.71, 2.46],
    GRPOGuard: [0.82, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02, 1.02],
}


@pytest.mark.parametrize("kind", PROFILES)
def test_how_much_each_step_pulls(kind: Any) -> None:
    """Flow-GRPO's grows with 1 / sigma, TempFlow's with the length of a step, Guard's is the same everywhere."""
    algorithm = kind(beta=0.0)
    batch = replace(everything(algorithm, rollout(algorithm, size=max(4, algorithm.rollout.leaves))), fresh=True)
    batch = replace(batch, z=torch.ones_like(batch.z), advantage=torch.ones_like(batch.advantage))
    v = velocity(batch.x_t, batch.t, batch.condition).requires_grad_()
    loss, _ = algorithm.loss(Models(lambda *_: v, velocity, velocity), batch)
    each = torch.autograd.grad(loss.sum(), v)[0].flatten(1).norm(dim=1)
    profile = torch.stack([each[batch.step == number].mean() for number in range(9)])
    assert (profile / profile.mean()).tolist() == pytest.approx(PROFILES[kind], abs=0.01)


def test_the_reference_costs_nothing_without_weight() -> None:
    for algorithm in (FlowGRPO(beta=0.0), DDPO(), DanceGRPO(), G2RPO()):
        assert algorithm.anchors == {}
        assert algorithm.copies == {}
    assert FlowGRPO().anchors == {"reference": 4.5}
    assert TempFlowGRPO().anchors == {"reference": 4.5}
