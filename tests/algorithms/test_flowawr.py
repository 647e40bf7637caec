"""FlowAWR against closed forms: what its three forms pull towards, and how rewards become its advantages.

Minimisers are solved for from gradients of the library's loss; what they must equal is written from the theory of a
Gaussian policy N(M, S^2) under the reward K x0 at temperature TAU. Numbers in names name laws.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import exp
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowward.algorithms import FlowAWR
from flowward.algorithms.flowawr import Form
from flowward.algorithms.objectives import advantageflow, diffusion_nft, flowawr
from flowward.algorithms.presets import PRESETS
from flowward.learning.credit import Softmax, group_mean, group_std
from flowward.learning.points import Points
from flowward.learning.snapshots import Decay
from flowward.process.flow import clean, interpolate, mean, over
from flowward.process.policy import Condition, Models

M, S, K, TAU = 0.3, 0.8, 1.0, 0.8
PLACES = ((0.9, 1.0), (0.5, -0.4), (0.2, 1.3), (1.0, 0.7), (0.05, 0.1))  # (t, x)
FORMS: tuple[Form, ...] = ("released", "velocity", "exact")

close = partial(torch.testing.assert_close, rtol=0, atol=1e-10)
forms = pytest.mark.parametrize("form", FORMS)


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def samples() -> dict[str, Any]:
    v, v_old, v_ref, x0, eps = real(5, 5, 2, 3)
    t = torch.tensor([0.05, 0.3, 0.6, 0.9, 1.0], dtype=torch.float64)
    advantage = torch.tensor([-0.9, -0.4, 0.1, 0.8, 2.9], dtype=torch.float64)
    x_t = interpolate(x0, eps, t)
    return {"v": v, "v_old": v_old, "v_ref": v_ref, "x_t": x_t, "t": t, "x0": x0, "advantage": advantage, "eps": eps}


def quadratic(s: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """What losses have in common: mean((v - v_old)^2), mean(e^2) with e = u - v_old, A, and t^2."""
    return mean((s["v"] - s["v_old"]) ** 2), mean((s["eps"] - s["x0"] - s["v_old"]) ** 2), s["advantage"], s["t"] ** 2


def without(s: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: tensor for name, tensor in s.items() if name not in names}


def gradient_at(v: Tensor, s: dict[str, Any], **setting: Any) -> Tensor:
    v = v.clone().requires_grad_()
    return torch.autograd.grad(flowawr(**{**s, "v": v}, **setting).sum(), v)[0]


# The loss, point by point


@pytest.mark.parametrize(
    ("form", "fit"),
    [
        # |v - v_old - A e|^2 with v - v_old = (2, -1), (0, 1), e = (1, 0), (-1, -1), A = 0.5, -1: (1.5, -1), (-1, 0)
        ("velocity", [1.625, 0.5]),
        # times t^2 over t mean|v - u|: 0.5 / 1 and 0.25 / 1.5
        ("released", [0.8125, 1 / 12]),
        # t^2 (A |v - u|^2 + |v - v_old|^2): 0.25 (0.5 + 2.5) and 0.0625 (-2.5 + 0.5)
        ("exact", [0.75, -0.125]),
    ],
)
def test_by_hand(form: Form, fit: list[float]) -> None:
    """u = (-1, 2), (1, -3); |v - v_ref|^2 = 0.5, 1, to which exemplars are not held."""
    x0, eps = torch.tensor([[1.0, 0], [0, 2]]), torch.tensor([[0.0, 2], [1, -1]])
    v, v_old, v_ref = torch.tensor([[[0.0, 1], [2, -1]], [[-2, 2], [2, -2]], [[0, 0], [1, -2]]])
    x_t, t, a = torch.tensor([[0.5, 1], [0.25, 1.25]]), torch.tensor([0.5, 0.25]), torch.tensor([0.5, -1])
    expected = torch.tensor(fit) + 0.1 * torch.tensor([0.5, 1.0])
    arguments = (v, v_old, v_ref, x_t, t, x0, a, 0.1, form)
    close(flowawr(*arguments), expected, atol=1e-6)
    close(flowawr(*arguments, eps), expected, atol=1e-6)
    nothing = torch.zeros(2, dtype=torch.long)
    points = Points(x_t, t, Condition({"id": nothing}), x0, eps, a, nothing, torch.tensor([False, True]))
    models = Models(lambda *_: v, lambda *_: v_old, lambda *_: v_ref)
    loss, watched = FlowAWR(form, k_ref=0.1).loss(models, points)
    close(loss, expected - torch.tensor([0.0, 0.1]), atol=1e-6)
    close(watched["distance"], torch.tensor([2.5, 0.5]), atol=1e-6)
    close(watched["residual"], torch.tensor([0.5, 1.0]), atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0, 3.0])
def test_02_nft_is_advantageflow_and_a_constant(beta: float) -> None:
    """NFT(beta, r) - beta AF(A = 2r - 1, gamma = beta - A) = (1 - beta A) |e|^2, here times t^2 / beta."""
    s = samples()
    s["advantage"] = s["advantage"] / 3
    distance, residual, a, weight = quadratic(s)
    rest = without(s, "v", "v_ref", "eps")
    for v in (s["v"], s["v_old"]):
        nft = diffusion_nft(v, v_ref=None, **rest, beta=beta, clip=1.0, denominator=False)
        flow = advantageflow(v, v_ref=None, **rest, gamma=beta - a)
        close(nft - flow, weight * (1 - beta * a) * residual / beta)
    assert (distance > 0.1).all()


def test_03_target_is_advantageflow_and_a_constant() -> None:
    """|v - target|^2 - AF(A, gamma = 1 - A) = A (A - 1) |e|^2, and for `exact` AF(A, gamma = 1), both without t^2."""
    s = samples()
    _, residual, a, weight = quadratic(s)
    rest = without(s, "v", "v_ref", "eps")
    for v in (s["v"], s["v_old"]):
        awr = partial(flowawr, v, v_ref=None, **rest, eps=s["eps"])
        close(awr(form="velocity") - advantageflow(v, v_ref=None, **rest, gamma=1 - a) / weight, a * (a - 1) * residual)
        close(awr(form="exact"), advantageflow(v, v_ref=None, **rest, gamma=1.0))


def test_released_is_velocity_divided_by_its_error() -> None:
    """t^2 / max(mean|f - x0|, 1e-5): the distance to x0, not to the target, and no gradient flows into it."""
    s = samples()
    scale = s["t"] ** 2 / mean((clean(s["x_t"], s["t"], s["v"]) - s["x0"]).abs())
    bare: Callable[..., Tensor] = partial(flowawr, **without(s, "v", "v_ref"), v_ref=None)
    close(bare(s["v"]), scale * bare(s["v"], form="velocity"))
    found = gradient_at(s["v"], s, k_ref=0.0)
    close(found, over(scale, found) * gradient_at(s["v"], s, form="velocity", k_ref=0.0))
    near = s["eps"] - s["x0"] + 1e-7 / over(s["t"], s["x0"])  # f = x0 - 1e-7, below the floor
    close(bare(near), (s["t"] ** 2 * bare(near, form="velocity")) / 1e-5, atol=1e-6)


@forms
def test_minimiser_of_a_point(form: Form) -> None:
    """v_old + A e; for `exact` v_old + A / (1 + A) e."""
    s = samples()
    a = s["advantage"] / (1 + s["advantage"]) if form == "exact" else s["advantage"]
    best = s["v_old"] + over(a, s["v"]) * (s["eps"] - s["x0"] - s["v_old"])
    close(gradient_at(best, s, form=form, k_ref=0.0), torch.zeros_like(best))
    loss: Callable[..., Tensor] = partial(flowawr, **without(s, "v"), form=form, k_ref=0.0)
    if form != "released":  # whose scale has no gradient but a value
        assert all((loss(best + 0.1 * real(5, 2, 3, seed=seed)) > loss(best)).all() for seed in range(10))


@forms
def test_the_reference_is_in_velocity_space(form: Form) -> None:
    """k_ref |v - v_ref|^2 whatever t; one weight per point, and none without v_ref."""
    s = samples()
    distance = mean((s["v"] - s["v_ref"]) ** 2)
    alone = flowawr(**{**s, "v_ref": None}, form=form)
    close(flowawr(**s, form=form, k_ref=0.3) - alone, 0.3 * distance)
    close(flowawr(**s, form=form, k_ref=s["t"]) - alone, s["t"] * distance)
    close(flowawr(**s, form=form, k_ref=0.0), alone)


@forms
def test_noise_need_not_be_given(form: Form) -> None:
    """u = (x_t - x0) / t; at t = 0 there is none, and yet nothing is nan."""
    s = samples()
    close(flowawr(**without(s, "eps"), form=form), flowawr(**s, form=form))
    start = {**without(s, "eps"), "t": torch.zeros_like(s["t"]), "x_t": s["x0"]}
    assert flowawr(**start, form=form).isfinite().all()
    assert gradient_at(s["v"], start, form=form).isfinite().all()


def test_the_exact_form_needs_a_tilt() -> None:
    """A < -1 would leave it without a minimum: a gated credit goes down to -3."""
    FlowAWR("exact")
    FlowAWR("released", credit=Softmax(gate="group"))
    FlowAWR("exact", credit=Softmax(gate="group", clip=0.9))
    with pytest.raises(ValueError, match=r"A >= -1.*allows A = -3.*gate"):
        FlowAWR("exact", credit=Softmax(gate="group"))
    with pytest.raises(ValueError, match="k_ref must not be negative"):
        FlowAWR(k_ref=-1e-4)


def test_the_exact_form_tells_its_curvature() -> None:
    """1 + A: several credits added up may reach below -1, which no setting of one shows."""
    s = samples()
    number = torch.arange(len(s["t"]))
    points = Points(
        s["x_t"], s["t"], Condition({}), s["x0"], s["eps"], s["advantage"], number, number < 0,
        known={"policy": s["v"], "old": s["v_old"], "reference": s["v_ref"]},
    )  # fmt: skip
    nothing: Any = None
    models = Models(nothing, nothing, nothing)
    assert "curvature_min" not in FlowAWR().loss(models, points)[1]
    found = FlowAWR("exact").loss(models, points)[1]
    close(found["curvature_min"], 1 + s["advantage"])


# What it pulls towards, over all samples that a noisy point may have come from


def posterior(places: tuple[tuple[float, float], ...] = PLACES, **law: float) -> dict[str, Tensor]:
    """At noisy places x and t, [Z]: nodes x0 of the posterior [Z, Q], their weights p and tilts w."""
    m, s, k = (law.get(name, value) for name, value in (("m", M), ("s", S), ("k", K / TAU)))
    t, x = torch.tensor(places, dtype=torch.float64).T
    total, y = (1 - t) ** 2 * s**2 + t**2, x - (1 - t) * m
    nodes, weights = (torch.from_numpy(array) for array in np.polynomial.hermite_e.hermegauss(60))
    x0 = (m + (1 - t) * s**2 * y / total)[:, None] + (s * t / total.sqrt())[:, None] * nodes
    return {
        "x": x, "t": t, "x0": x0, "p": (weights / weights.sum()).expand_as(x0),
        "w": (k * (x0 - m) - (k * s) ** 2 / 2).exp(),
        "v_old": -m + (t - (1 - t) * s**2) * y / total, "step": -k * s**2 * t / total,
    }  # fmt: skip


def minimiser(g: dict[str, Tensor], advantage: Tensor, form: Form) -> Tensor:
    """The v [Z] that minimises the loss averaged over x0; gradients of a quadratic are linear, so two find the root."""

    def expand(values: Tensor) -> Tensor:
        return values[:, None].expand_as(g["p"]).reshape(-1, 1)

    x0, x_t, t = g["x0"].reshape(-1, 1), expand(g["x"]), expand(g["t"])[:, 0]
    eps = (x_t - (1 - t[:, None]) * x0) / t[:, None]
    s = {"v_old": expand(g["v_old"]), "v_ref": None, "x_t": x_t, "t": t, "x0": x0, "advantage": advantage.flatten()}

    def gradient(value: float) -> Tensor:
        slope = gradient_at(torch.full_like(x0, value), {**s, "eps": eps}, form=form)
        return (g["p"] * slope.view_as(g["p"])).sum(1)

    return gradient(0.0) / (gradient(0.0) - gradient(1.0))


def test_closed_forms_hold() -> None:
    """The formulas of this section against tabulated numbers."""
    g = posterior()
    close((g["p"] * (g["x"][:, None] - g["x0"])).sum(1) / g["t"], g["v_old"])
    assert g["v_old"][:3].tolist() == pytest.approx([0.693288, -0.541463, -1.035587], abs=1e-6)
    assert g["step"][:3].tolist() == pytest.approx([-0.881921, -0.975610, -0.355872], abs=1e-6)
    assert (g["p"] * g["w"]).sum(1)[:3].tolist() == pytest.approx([1.095413, 0.481087, 2.867329], abs=1e-6)


@pytest.mark.parametrize("form", ["velocity", "exact"])
def test_05_advantages_relative_to_the_noisy_point_give_the_optimal_velocity(form: Form) -> None:
    """A = w / E[w | x_t] - 1 steps by Cov(w, u | x_t) / E[w | x_t] = -(K S^2 / TAU) t / S_t."""
    g = posterior()
    a = g["w"] / (g["p"] * g["w"]).sum(1, keepdim=True) - 1
    close(minimiser(g, a, form) - g["v_old"], g["step"], atol=1e-8)


def test_06_the_stated_form_overshoots() -> None:
    """A = w - 1 steps E[w | x_t] times as far: too far where a noisy point already looks good."""
    g = posterior()
    weight = (g["p"] * g["w"]).sum(1)
    found = minimiser(g, g["w"] - 1, "velocity") - g["v_old"]
    close(found, weight * g["step"], atol=1e-8)
    assert ((found.abs() > g["step"].abs()) == (weight > 1))[:3].all()
    close(weight[3], torch.ones((), dtype=torch.float64))  # at t = 1 both agree


def test_07_the_exact_form_does_not() -> None:
    g = posterior()
    close(minimiser(g, g["w"] - 1, "exact"), g["v_old"] + g["step"])


def test_forward_08_it_goes_the_density_ratio_of_the_way() -> None:
    """alpha = q_t / p_t of the way from v_old to v_q, here for N(0.2, 0.7^2), w = exp(1.5 x) at t = 0.4, x = 0.1."""
    m, s, k, t, x = 0.2, 0.7, 1.5, 0.4, 0.1
    g = posterior(((t, x),), m=m, s=s, k=k)
    deviation = ((1 - t) ** 2 * s**2 + t**2) ** 0.5
    p_t, q_t = (exp(-(((x - (1 - t) * mean) / deviation) ** 2) / 2) for mean in (m, m + k * s**2))
    v_q, found = g["v_old"] + g["step"], minimiser(g, g["w"] - 1, "velocity")
    assert [q_t / p_t, v_q.item(), found.item()] == pytest.approx([0.72958, -1.0803, -0.8439], abs=5e-5)
    close(found, g["v_old"] + q_t / p_t * g["step"])
    close(minimiser(g, g["w"] - 1, "exact"), v_q)


# Rewards to advantages


def test_15_tilts_sum_to_zero() -> None:
    """A = K softmax(z) - 1 lies in [-1, K - 1]; an exponential tilt relative to its group."""
    reward, group = real(60), torch.arange(60) % 5  # K = 12
    a = Softmax(clip=1e9)(reward, group)
    close(group_mean(a, group), torch.zeros_like(a), atol=1e-12)
    z = reward / (reward.std(correction=0) + 1e-4)
    for number in range(5):
        mine = group == number
        close(a[mine], 12 * z[mine].softmax(0) - 1, atol=1e-12)
    assert a.min() >= -1
    assert a.max() <= 11
    close(Softmax()(reward, group), a.clamp(-3, 3))
    sharp = Softmax(temperature=0.05, clip=1e9)(reward, group)
    assert (sharp.min(), sharp.max()) == pytest.approx((-1, 11), abs=1e-3)


def test_15_by_hand() -> None:
    """Two rewards lie 1 deviation from their mean: e^2 = 7.389 to 1, so 2 * 0.880797 - 1; e at temperature 2."""
    reward, group = torch.tensor([0.0, 9.0]), torch.zeros(2)
    assert Softmax()(reward, group).tolist() == pytest.approx([-0.761594, 0.761594], abs=1e-4)
    assert Softmax(temperature=2.0)(reward, group).tolist() == pytest.approx([-0.462117, 0.462117], abs=1e-4)


@pytest.mark.parametrize("gate", ["none", "group", "batch"])
def test_15_large_rewards(gate: Any) -> None:
    """Nothing overflows, a shift cancels, and equal rewards give exactly 0."""
    reward, group = real(40), torch.arange(40) // 8
    credit = Softmax(gate=gate)
    close(credit(reward + 1e6, group), credit(reward, group), atol=1e-6)
    close(credit(1e6 * reward, group), credit(reward, group), atol=1e-3)  # the floor of the spread is 1e-4
    alone = credit(torch.tensor([0.0] * 39 + [1e6]), torch.zeros(40))
    assert alone.isfinite().all()
    assert alone[-1] == 3
    if gate == "none":  # scores 39^0.5 and -39^-0.5, the first clipped at 5
        top = 40 / (1 + 39 * exp(-(39**-0.5) - 5)) - 1
        assert Softmax(clip=1e9)(torch.tensor([0.0] * 39 + [1e6]), torch.zeros(40))[-1] == pytest.approx(top, abs=1e-6)
    for value in (0.0, 0.1, 1e6, -1e6 - 0.1):
        assert (credit(torch.full((40,), value), group) == 0).all()


@pytest.mark.parametrize(
    ("size", "clip", "gain", "middle", "clipped"),
    [(24, 1e9, 0.906, 0, 0), (24, 3.0, 0.793, -0.043, 0.027), (4, 1e9, 0.610, 0, 0)],
)
def test_15_gain_in_groups_of_finite_size(size: int, clip: float, gain: float, middle: float, clipped: float) -> None:
    """Cov(A, R) for unit normal rewards, where an exact tilt has 1; the clip binds at the top alone."""
    reward, group = real(480_000), torch.arange(480_000) // size
    a = Softmax(clip=clip)(reward, group)
    found = ((a * reward).mean(), a.mean(), (a == clip).double().mean())
    assert [each.item() for each in found] == pytest.approx([gain, middle, clipped], abs=4e-3)
    assert a.min() >= -1


def rules(*solved: int) -> tuple[Tensor, Tensor]:
    """Groups of 24 of which so many get 1, the others 0."""
    reward = torch.cat([(torch.arange(24) < count).double() for count in solved])
    return reward, torch.arange(len(reward)) // 24


def test_16_gated_rules_give_z_scores() -> None:
    """sqrt((1 - p) / p) for those that pass a share p, -sqrt(p / (1 - p)) for the others, whatever the temperature."""
    reward, group = rules(6, 12, 18, 0, 24, 1)
    z = (reward - group_mean(reward, group)) / group_std(reward, group).clamp_min(1e-12)
    for temperature in (1.0, 2.0):
        a = Softmax(temperature=temperature, gate="group")(reward, group)
        close(a, z.clamp(-3, 3), atol=0, rtol=1e-2)
    assert a[[0, 6, 24, 36]].tolist() == pytest.approx([1.73, -0.58, 1, -1], rel=1e-2)
    assert (a[72:120] == 0).all()
    assert a[120] == 3  # not sqrt(23)


def test_16_the_floor_binds_for_groups_that_are_nearly_solved() -> None:
    """23 of 24: softmax - 1 / 24 is divided by 0.01, more than its deviation, and a failure weighs at most -3."""
    reward, group = rules(23)
    p = ((reward - 23 / 24) / (reward.std(correction=0) + 1e-4)).softmax(0) - 1 / 24
    assert p.std(correction=0) < 0.01 - 1e-4
    a = Softmax(gate="group", clip=1e9)(reward, group)
    close(a, p / 0.01)
    assert a[0] < 0.9 * (1 / 23) ** 0.5
    assert Softmax(gate="group")(reward, group)[-1] == -3
    free = Softmax(gate="group", floor=1e-6, clip=1e9)(reward, group)
    close(free, p / (p.std(correction=0) + 1e-4))


def test_16_gate_of_the_batch() -> None:
    """One deviation for all groups: those that tell more keep larger advantages."""
    reward, group = rules(6, 23)
    share = (Softmax(clip=1e9)(reward, group) + 1) / 24 - 1 / 24
    close(Softmax(gate="batch", clip=1e9)(reward, group), share / (share.std(correction=0) + 1e-4))


def test_21_schedules_of_the_old_policy() -> None:
    fast, slow = Decay(0.5, slope=0.001), Decay(0.999, slope=0.0075, start=75)
    assert [fast(step) for step in (0, 250, 500, 5000)] == [0, 0.25, 0.5, 0.5]
    assert [slow(step) for step in (0, 75, 100, 500)] == [0, 0, 0.1875, 0.999]
    assert PRESETS["flowawr"]["geneval"].algorithm.old == fast
    assert PRESETS["flowawr"]["video"].algorithm.old == slow
