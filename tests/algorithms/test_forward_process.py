"""Losses without likelihoods: the family they form, and the schedules, times and credit that come with them.

A number in a test's name names a law: what the losses share, which of them are the same, what they pull towards.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log, nan
from typing import Any

import pytest
import torch
from losses import Loss, close, evaluate, gradient, loss_and_gradient, on_policy, real, samples, velocity
from torch import Tensor
from torch.nn.functional import logsigmoid

from flowward.algorithms.diffusion_nft import optimality
from flowward.algorithms.objectives import (
    advantageflow,
    awm,
    crd,
    dgpo,
    diffusion_nft,
    dpo,
    fdfo,
    flowawr,
    ram,
    rvm,
    vgrpo,
)
from flowward.algorithms.presets import PRESETS
from flowward.learning.credit import BestAndWorst, CentredRMS, HalfDifference, Softmax, ZScore, group_mean
from flowward.learning.snapshots import Decay, WarmDecay
from flowward.learning.terms import group_sum, matching
from flowward.process.flow import mean, over
from flowward.process.rollout import Sampler
from flowward.process.times import Times

N = 6  # elements of a sample


# What the losses share


def shares(a: Tensor, t: Tensor, e: Tensor, group: Tensor) -> dict[str, tuple[Loss, Tensor]]:
    """On policy: a loss, and the g of its gradient -(g / N) e, [B]."""
    size, root, square = mean(e.abs()), mean(e**2).sqrt(), mean(e**2) + 1e-10
    return {
        **{f"nft {b}": (partial(diffusion_nft, beta=b), 2 * a * t / size) for b in (0.1, 1.0, 3.0)},
        **{f"advantageflow {g}": (partial(advantageflow, gamma=g, denominator=True), 2 * a * t / size) for g in (1, 5)},
        "awm huber": (partial(awm, weighting="huber"), a / 5 * t / root),
        "awm ghuber": (awm, 2 * a / 5 * t * square**-0.75),
        "awm ghuber 0.5": (partial(awm, power=0.5), 2 * a / 5 * t * square**-0.5),
        "awm uniform": (partial(awm, weighting="uniform"), 2 * a / 5),
        "awm t": (partial(awm, weighting="t"), 2 * a / 5 * t),
        "awm t2": (partial(awm, weighting="t2"), 2 * a / 5 * t**2),
        "flowawr velocity": (partial(flowawr, form="velocity"), 2 * a),
        "flowawr released": (flowawr, 2 * a * t / size),
        "flowawr exact": (partial(flowawr, form="exact"), 2 * a * t**2),
        "dgpo": (dgpo, a),  # sigmoid(0) = 1/2
        "crd": (crd, 2 * (a - group_mean(a, group)) / size),  # y = A / 10 + 1/2
        "dpo": (partial(dpo, beta=3.0), 3 * a.sign()),  # both rows of a pair carry its loss
        "ram": (ram, a),
        "ram old": (partial(ram, residual="old"), a),
        "rvm": (rvm, a / 10),
        "advantageflow signed": (partial(advantageflow, gamma=0.0, signed=True), 2 * a * t**2),
        "vgrpo": (partial(vgrpo, image=torch.arange(len(a))), 2 * a * t / size),
    }


@pytest.mark.parametrize("name", shares(torch.ones(2), torch.ones(2), torch.ones(2, 1), torch.zeros(2)))
def test_forward_05_gradients_on_policy(name: str) -> None:
    """At v = v_old = v_ref, e = u - v_old: beta and gamma are not in it, and the reward is."""
    s = on_policy()
    e = velocity(s) - s["v_old"]
    loss, share = shares(s["advantage"], s["t"], e, s["group"])[name]
    close(gradient(loss, s), -over(share, e) * e / N)


def test_forward_05_gradient_of_fdfo_on_policy() -> None:
    """+(2 / N) A delta / mean(delta^2): down along delta where the own reward is the higher one."""
    s = on_policy()
    push = s["delta"] / over(mean(s["delta"] ** 2) + 1e-6, s["delta"])
    close(gradient(fdfo, s), 2 / N * over(s["advantage"], push) * push)


@pytest.mark.parametrize("k", [0.5, 2.0])
def test_forward_06_one_quadratic(k: float) -> None:
    """Without their scales all are q (a mean(d^2) - 2 b mean(d e)), d = v - v_old, e = u - v_old."""
    s = samples()
    s["advantage"] = s["advantage"] / 5
    a, t, one = s["advantage"], s["t"], torch.ones_like(s["t"])
    d, e = s["v"] - s["v_old"], velocity(s) - s["v_old"]
    bare = {"v_ref": None, "clip": 1.0, "denominator": False}
    table: list[tuple[Tensor, tuple[Tensor, Tensor, Tensor]]] = [
        (gradient(flowawr, s, form="velocity", v_ref=None), (one, a, one)),
        (gradient(flowawr, s, form="exact", v_ref=None), (a + 1, a, t**2)),
        (gradient(advantageflow, s, gamma=k, v_ref=None), (a + k, a, t**2)),
        (gradient(advantageflow, s, gamma=1 - a, v_ref=None), (one, a, t**2)),
        (gradient(diffusion_nft, s, beta=k, **bare), (k * one, a, t**2)),
        (gradient(awm, s, weighting="uniform", k_old=k, v_ref=None, advantage_clip=1.0), (a + k, a, one)),
    ]
    for found, (curvature, pull, outer) in table:
        close(found, 2 / N * over(outer, d) * (over(curvature, d) * d - over(pull, d) * e))


@pytest.mark.parametrize("beta", [0.1, 1.0, 2.0])
def test_forward_06_equivalences(beta: float) -> None:
    """NFT(beta) is t^2 beta FlowAWR(A / beta), and tethered AWM is AdvantageFlow in velocity space.

    On policy NFT(A) is 5 AdvantageFlow(A / 5), if both divide by their error.
    """
    s = samples()
    fifth = s["advantage"] / 5
    nft = gradient(diffusion_nft, s, beta=beta, clip=1.0, denominator=False, advantage=fifth, v_ref=None)
    awr = gradient(flowawr, s, form="velocity", advantage=fifth / beta, v_ref=None)
    close(nft, over(s["t"] ** 2 * beta, awr) * awr)
    flow = gradient(advantageflow, s, advantage=fifth, gamma=beta, lam=0.3, space="velocity")
    close(gradient(awm, s, weighting="uniform", k_old=beta, k_ref=0.3), flow)
    same = on_policy()
    flow = gradient(advantageflow, same, advantage=fifth, denominator=True)
    close(gradient(diffusion_nft, same, beta=beta), 5 * flow)


@pytest.mark.parametrize("gamma", [0.2, 1.1, 5.0])
def test_forward_07_minimiser(gamma: float) -> None:
    """(A u + gamma v_old + lambda v_ref) / (A + gamma + lambda): a minimum if that is positive, else a maximum."""
    s = samples()
    a, lam = s["advantage"], 0.4
    total = a + gamma + lam
    best = over(a, s["v"]) * velocity(s) + gamma * s["v_old"] + lam * s["v_ref"]
    s["v"] = best / over(total, best)
    close(gradient(advantageflow, s, gamma=gamma, lam=lam), torch.zeros_like(best), atol=1e-9)
    loss = partial(evaluate, advantageflow, gamma=gamma, lam=lam)
    for seed in range(5):
        away = loss({**s, "v": s["v"] + real(6, 2, 3, seed=seed)}) - loss(s)
        assert (away.sign() == total.sign()).all()
    assert (total > 0).all() == (gamma == 5)


# Losses that compare the samples of a prompt


def test_forward_10_dgpo_is_a_preference_of_groups() -> None:
    """Its gradient is that of -log sigmoid(-s), over beta: s = sum A beta (m - m_ref) / K."""
    s, beta = samples(), 1.7

    def preference(v: Tensor, v_ref: Tensor, x0: Tensor, eps: Tensor, advantage: Tensor, group: Tensor) -> Tensor:
        gap = matching(v, x0, eps) - matching(v_ref, x0, eps)
        return -logsigmoid(-group_sum(advantage * beta * gap / 2, group)) / 2  # once per row, so over K

    surrogate = gradient(dgpo, s, v_old=None, beta=beta, k_ref=0.0)
    close(gradient(preference, s), beta * surrogate / 2)


def test_forward_10_a_prompts_normaliser_cancels_in_dgpo() -> None:
    """All m_ref of a prompt shifted by one number: nothing changes if its advantages sum to 0."""
    s = samples()
    s["advantage"] = torch.tensor([-2.0, 2.0, 1.0, -1.0, 0.3, -0.3], dtype=torch.float64)
    u, m = velocity(s), matching(s["v_ref"], s["x0"], s["eps"])
    shift = torch.tensor([0.4, 0.4, 2.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    moved = {**s, "v_ref": u + over(((m + shift) / m).sqrt(), u) * (s["v_ref"] - u)}
    loss = partial(evaluate, dgpo, k_ref=0.0, beta=0.5)
    close(loss(moved), loss(s))
    uncentred = s["advantage"] + 0.5
    assert (loss({**moved, "advantage": uncentred}) - loss({**s, "advantage": uncentred})).abs().min() > 1e-4


def test_forward_10_crd_may_centre_by_a_constant() -> None:
    """The residuals of a prompt sum to 0: the gradient is that with a centre that follows the policy."""
    s, beta = samples(), 1.3
    u, y = velocity(s), s["advantage"] / 10 + 0.5

    def full(v: Tensor, v_old: Tensor) -> Tensor:
        implied = [mean((w - u) ** 2) / mean((w - u).abs()).detach() for w in (v_old, v)]
        gap = beta * (implied[0] - implied[1]) - y
        return 5 / beta * (gap - group_sum(gap, s["group"]) / 2) ** 2

    close(gradient(full, s), gradient(crd, s, beta=beta, k_ref=0.0))
    close(evaluate(full, s), evaluate(crd, s, beta=beta, k_ref=0.0))


def test_forward_10_a_prompts_normaliser_cancels_in_crd() -> None:
    """All implied rewards of a prompt shifted by one number."""
    s = samples()
    u = velocity(s)
    old = mean((s["v_old"] - u) ** 2) / mean((s["v_old"] - u).abs())
    shift = torch.tensor([0.4, 0.4, 2.0, 2.0, -0.1, -0.1], dtype=torch.float64)
    moved = {**s, "v_old": u + over(1 + shift / old, u) * (s["v_old"] - u)}
    close(evaluate(crd, moved), evaluate(crd, s))
    close(gradient(crd, moved), gradient(crd, s))


@pytest.mark.parametrize("name", ["dgpo", "crd", "dpo"])
def test_forward_10_prompts_do_not_mix(name: str) -> None:
    """A prompt's losses and gradients are the same alone, and in any order among others."""
    s = samples()
    loss, slope = loss_and_gradient(name, s)
    for rows in (torch.tensor([2, 3]), torch.tensor([4, 0, 3, 5, 2, 1])):
        part, part_slope = loss_and_gradient(name, {key: tensor[rows] for key, tensor in s.items()})
        close(part, loss[rows])
        close(part_slope, slope[rows])


def test_dgpo_stops_pushing_what_has_gone_far_enough() -> None:
    """exp(m_old - m) above 1 + clip for A > 0, below 1 - clip for A <= 0: no gradient, and the same loss."""
    s = samples()
    u, a, m = velocity(s), s["advantage"], matching(s["v"], s["x0"], s["eps"])
    for ratio, stopped in ((1.4, a > 0), (1.15, a > 9), (0.85, a > 9), (0.6, a <= 0)):
        s["v_old"] = u + over(((m + log(ratio)) / m).sqrt(), u) * (s["v"] - u)
        still = gradient(dgpo, s, clip=0.2, k_ref=0.0).flatten(1).abs().amax(1) == 0
        assert torch.equal(still, stopped)
        close(evaluate(dgpo, s, clip=0.2), evaluate(dgpo, s, v_old=None))


@pytest.mark.parametrize("function", [awm, diffusion_nft, dgpo, crd, rvm])
def test_advantages_are_clipped(function: Loss) -> None:
    s = samples()
    assert torch.equal(
        evaluate(function, s, advantage=2 * s["advantage"]),
        evaluate(function, s, advantage=(2 * s["advantage"]).clamp(-5, 5)),
    )


# Schedules, times and credit


def test_forward_11_old_policies_follow_on_schedule() -> None:
    steps = [0, 74, 75, 76, 208, 209, 300, 500, 5000]
    expected = {
        Decay(0.0): [0.0] * 9,
        Decay(0.5, slope=0.001): [0, 0.074, 0.075, 0.076, 0.208, 0.209, 0.3, 0.5, 0.5],
        Decay(0.999, slope=0.0075, start=75): [0, 0, 0, 0.0075, 0.9975, 0.999, 0.999, 0.999, 0.999],
        Decay(0.3, slope=0.001): [0, 0.074, 0.075, 0.076, 0.208, 0.209, 0.3, 0.3, 0.3],
        Decay(0.999, slope=0.005, first=0.25): [0.25, 0.62, 0.625, 0.63, *[0.999] * 5],
    }
    for decay, values in expected.items():
        assert [decay(step) for step in steps] == pytest.approx(values, abs=1e-12)
    assert [WarmDecay(0.9)(step) for step in (0, 10, 80, 5000)] == pytest.approx([0.1, 0.55, 0.9, 0.9])
    assert [Decay(0.0, every=40)(step) for step in (1, 39, 40, 41, 80)] == [1, 1, 0, 1, 0]


@pytest.mark.parametrize(
    "setting",
    [{"slope": -0.1}, {"slope": inf}, {"slope": nan}, {"start": -1}, {"every": 0}, {"first": 1.0}, {"retention": nan}],
    ids=str,
)
def test_forward_11_what_is_no_schedule_is_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"must not be negative|must lie in \[0, 1\)|must be >= 1"):
        Decay(**setting)


def test_forward_11_the_published_presets_have_their_own_schedules() -> None:
    copies = {
        name: {key: preset.algorithm.copies for key, preset in presets.items()} for name, presets in PRESETS.items()
    }
    for name, limit in {"diffusion_nft": 0.5, "flowawr": 0.5, "awm": 0.3, "dgpo": 0.3}.items():
        assert copies[name]["geneval"] == {"old": Decay(limit, slope=0.001)}
    crds = {"old": Decay(0.999, slope=0.005, first=0.25), "sampling": Decay(0.999, slope=0.0075, start=75)}
    assert copies["crd"]["ocr"] == crds
    assert copies["diffusion_nft"]["ocr"] == {"old": Decay(0.999, slope=0.0075, start=75)}
    assert copies["fdfo"]["pickscore"] == {}


def test_forward_11_optimality() -> None:
    a = torch.tensor([-9.0, -5, -1, 0, 1, 5, 9])
    expected = {
        "all": [0, 0, 0.4, 0.5, 0.6, 1, 1],
        "positive": [0.5, 0.5, 0.5, 0.5, 0.6, 1, 1],
        "negative": [0, 0, 0.4, 0.5, 0.5, 0.5, 0.5],
        "one-hot": [0.5, 0.5, 0.5, 0.5, 0.6, 0.6, 0.6],
        "sign": [0.4, 0.4, 0.4, 0.5, 0.6, 0.6, 0.6],
    }
    for mode, values in expected.items():
        assert optimality(a, mode=mode).tolist() == pytest.approx(values)  # type: ignore[arg-type]


def drawn(times: Times, count: int, levels: Tensor, calls: int) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    return torch.stack([times(count, levels, rng) for _ in range(calls)])


def test_forward_12_bins_of_the_grid() -> None:
    """AWM: 14 steps at shift 3, one of each of [1,2) [2,4) [4,6) [6,8) [8,10) [10,12): t in [0.357, 0.973]."""
    levels = Sampler(14, 3.0, "sd3").levels
    times = drawn(Times("bins", first=1, last=12), 6, levels, 200)
    index = (times[..., None] - levels.float()).abs().argmin(-1)
    edges = [1, 2, 4, 6, 8, 10, 12]
    for number in range(6):
        assert index[:, number].unique().tolist() == list(range(edges[number], edges[number + 1]))
    assert (times.min().item(), times.max().item()) == pytest.approx((0.357, 0.973), abs=5e-4)
    assert (drawn(Times("bins", last=12), 6, levels, 200) == 1).any()
    exact = drawn(Times("bins"), 38, torch.arange(42.0), 50)  # float64 puts 19 of 38 parts of 42 just below 21
    assert (set(exact[:, 18].tolist()), set(exact[:, 19].tolist())) == ({19, 20}, {21})


def test_forward_12_levels_of_the_grid() -> None:
    """DiffusionNFT: 9 of the 10, no two alike, each as likely, in no order."""
    levels = Sampler(10, 3.0, "sd3").levels
    times = drawn(Times("levels"), 9, levels, 2000)
    index = (times[..., None] - levels.float()).abs().argmin(-1)
    assert all(len(set(row.tolist())) == 9 for row in index)
    share = torch.stack([index == level for level in range(10)]).double().mean(1)  # [level, place]
    close(share, torch.full_like(share, 0.1), atol=0.03)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.2, 0.9)])
def test_10_times_of_a_power(low: float, high: float) -> None:
    """RAM: density 2 t, so E t = 2/3 and E t^2 = 1/2 on [0, 1] (T10 of new_methods.md), and the mass below an edge."""
    t = drawn(Times("power", low, high), 40_000, torch.ones(1), 1)[0].double()
    mass = high**2 - low**2
    assert t.mean().item() == pytest.approx(2 / 3 * (high**3 - low**3) / mass, abs=3e-3)
    assert (t**2).mean().item() == pytest.approx((high**4 - low**4) / 2 / mass, abs=3e-3)
    assert low <= t.min() and t.max() <= high
    for edge in (0.4, 0.7):
        assert (t < edge).double().mean().item() == pytest.approx((edge**2 - low**2) / mass, abs=0.01)


@pytest.mark.parametrize(
    ("times", "middle"), [(Times("logit-normal", shift=3.0), 0.714), (Times("stratified", 0.2, 1.0, 3.0), 0.786)]
)
def test_forward_12_shifts_favour_noise(times: Times, middle: float) -> None:
    t = drawn(times, 5000, torch.ones(1), 1)[0]
    assert t.mean().item() == pytest.approx(middle, abs=1e-3)
    assert t.mean() > drawn(Times(times.law, times.low, times.high), 5000, torch.ones(1), 1).mean() + 0.1
    assert t.min() >= 0.01
    assert t.max() <= 1
    ranks = drawn(times, 4, torch.ones(1), 300).argsort(1)  # of the strata, in random order
    assert all((ranks[:, place] == rank).any() for place in range(4) for rank in range(4))


def test_forward_13_spread_of_raw_rewards_or_of_centred_ones() -> None:
    """[[0, 1], [10, 11]]: standard deviations 5.025 and 0.5; equal rewards give exactly 0."""
    reward, group = torch.tensor([0.0, 1, 10, 11]), torch.tensor([0, 0, 1, 1])
    signs = torch.tensor([-0.5, 0.5, -0.5, 0.5], dtype=torch.float64)
    close(ZScore(floor=1e-12)(reward, group), signs / 5.02493781056, atol=1e-9)
    close(ZScore("group", floor=1e-12)(reward, group), signs / 0.5)
    close(CentredRMS()(reward, group), signs / 0.5)
    close(ZScore()(reward, group), signs / (5.02493781056 + 1e-4), atol=1e-9)
    for credit in (ZScore(), ZScore("group"), HalfDifference(), BestAndWorst(), Softmax(), Softmax(gate="group")):
        values = credit(torch.tensor([1e6 + 0.1] * 3 + [0.0, 1.0]), torch.tensor([4, 4, 4, 1, 1]))
        assert (values[:3] == 0).all()
        assert values[3] < 0 < values[4]


@pytest.mark.parametrize("credit", [ZScore(), ZScore("group"), HalfDifference(), BestAndWorst(), Softmax(gate="batch")])
def test_forward_13_order_does_not_matter(credit: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Shuffled, or gathered from two ranks in turn, each sample keeps its advantage."""
    reward, group = real(60), torch.arange(60) // 5 * 7 - 9
    expected = credit(reward, group)
    for order in (real(60, seed=1).argsort(), torch.arange(60).view(2, 30).T.flatten()):
        close(credit(reward[order], group[order]), expected[order], atol=1e-12)
