"""Every loss without likelihoods: numbers worked out by hand, and where it must not break."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from math import exp, log, sqrt
from typing import Any

import pytest
import torch
from losses import (
    FORMS,
    LOSSES,
    WEIGHTINGS,
    Loss,
    awm_off_policy,
    close,
    evaluate,
    gradient,
    loss_and_gradient,
    samples,
    velocity,
)
from torch import Tensor

from flowward.algorithms import ALGORITHMS, AWM, CRD, RAM, VGRPO, DiffusionNFT, FlowAWR, objectives
from flowward.algorithms.objectives import advantageflow, awm, crd, dgpo, diffusion_nft, dpo, fdfo, flowawr, ram, rvm
from flowward.learning.credit import Softmax, ZScore
from flowward.learning.points import Points, Renoise, RenoiseGroups, RenoisePairs
from flowward.learning.terms import tether
from flowward.process.flow import mean
from flowward.process.policy import Condition, Models
from flowward.process.rollout import Drawn, Rollout, Sampler
from flowward.process.times import Times

# Numbers worked out by hand


def by_hand() -> dict[str, Tensor]:
    """Two points of two elements. Their u is (-1, 2) and (1, -3); everything below follows from these lines.

    v - u = (1, -1), (1, 2): mean square m 1, 2.5; mean absolute value 1, 1.5.  v_old - u = (-1, 0), (1, 1): 0.5, 1 and
    0.5, 1.  d = v - v_old = (2, -1), (0, 1): mean square 2.5, 0.5.  v - v_ref = (0, 1), (1, 1): 0.5, 1.
    v_ref - u = (1, -2), (0, 1): 2.5, 0.5.
    """
    table = {
        "v": [[0, 1], [2, -1]],
        "v_old": [[-2, 2], [2, -2]],
        "v_ref": [[0, 0], [1, -2]],
        "x0": [[1, 0], [0, 2]],
        "eps": [[0, 2], [1, -1]],
        "x_t": [[0.5, 1], [0.25, 1.25]],
        "t": [0.5, 0.25],
        "advantage": [2.5, -5.0],
        "delta": [[1, 1], [2, 0]],
    }
    tensors = {name: torch.tensor(numbers, dtype=torch.float64) for name, numbers in table.items()}
    return {**tensors, "group": torch.tensor([5, 5])}


ROOTS = [sqrt(0.5), sqrt(2.5)]
FAR, NEAR = exp(-3.5), exp(-0.5)
GATE = 1 / (1 + exp(1.75))
GAP = 2.5 * (2 / 3 - 0.375) ** 2
HAND: list[tuple[str, dict[str, Any], list[float], list[float]]] = [
    # t^2 (A m + 2 mean(d^2) + 0.1 mean((v - v_ref)^2)); divided by t mean|v - u| = 0.5, 0.375
    ("advantageflow", {"gamma": 2.0, "lam": 0.1, "denominator": False}, [0.5, -1], [1.3875, -0.0875]),
    ("advantageflow", {"gamma": 2.0, "lam": 0.1, "denominator": True}, [0.5, -1], [2.775, -0.7 / 3]),
    # v+ = (-1, 1.5), (2, -1.5); f+ - x0 = (0, .25), (-.25, -.375): .03125, .1015625, w .125, .3125, L+ .25, .325
    # v- = (-3, 2.5), (2, -2.5); f- - x0 = (1, -.25), (-.25, -.125): .53125, .0390625, w .625, .1875, L- .85, 5/24
    # 10 (r L+ + (1 - r) L-) + 0.1 (.5, 1), with r = (.75, 0), (.75, .5), (.5, 0), (.6, .5), (.6, .4) by mode
    ("diffusion_nft", {"beta": 0.5, "k_ref": 0.1}, [2.5, -5], [4.05, 2.1 + 1 / 12]),
    ("diffusion_nft", {"beta": 0.5, "k_ref": 0.1, "mode": "positive"}, [2.5, -5], [4.05, 2.7 + 1 / 15]),
    ("diffusion_nft", {"beta": 0.5, "k_ref": 0.1, "mode": "negative"}, [2.5, -5], [5.55, 2.1 + 1 / 12]),
    ("diffusion_nft", {"beta": 0.5, "k_ref": 0.1, "mode": "one-hot"}, [2.5, -5], [4.95, 2.7 + 1 / 15]),
    ("diffusion_nft", {"beta": 0.5, "k_ref": 0.1, "mode": "sign"}, [2.5, -5], [4.95, 2.65]),
    # on policy -A / 5 whatever the weighting, and 0.4 mean(d^2) + 0.1 (.5, 1)
    *(("awm", {"weighting": w, "k_old": 0.4, "k_ref": 0.1}, [2.5, -5], [0.55, 1.3]) for w in WEIGHTINGS),
    # push = delta / mean(delta^2) = (1, 1), (1, 0), nearly; log rho = -2.5 - 1, -.5 - 0; -A rho + 2 |A| (rho - 1)^2
    (
        "fdfo",
        {"clip": 0.25, "k_ref": 0.1},
        [0.5, -1],
        [-FAR / 2 + (FAR - 1) ** 2 + 0.05, NEAR + 2 * (NEAR - 1) ** 2 + 0.1],
    ),
    # s = (2 (1 - 2.5) - 2 (2.5 - 0.5)) 0.5 / 2 = -1.75; sigmoid(s) A m + 0.1 (.5, 1)
    ("dgpo", {"beta": 0.5, "k_ref": 0.1}, [2, -2], [2 * GATE + 0.05, -5 * GATE + 0.1]),
    # implied .5/.5 - 1/1 = 0, 1/1 - 2.5/1.5 = -2/3, centred +-1/3; y = .75, 0, centred +-.375; 2.5 (2/3 - .375)^2;
    # the pull is all of 0.1, or .2 + .8 y of it
    ("crd", {"beta": 2.0, "k_ref": 0.1}, [2.5, -5], [GAP + 0.05, GAP + 0.1]),
    ("crd", {"beta": 2.0, "k_ref": 0.1, "hold": 0.2}, [2.5, -5], [GAP + 0.04, GAP + 0.02]),
    # v_ref is `old`: (1 - .5) - (2.5 - 1) = -1
    ("dpo", {"beta": 2.0}, [1, -1], [log(1 + exp(-1))] * 2),
    ("dpo", {"beta": 2.0}, [-1, 1], [log(1 + exp(1))] * 2),
]


def models_and_points(s: dict[str, Tensor]) -> tuple[Models, Points]:
    """As the trainer hands them over, float32."""
    names = ("x_t", "t", "x0", "eps", "advantage", "delta")
    rows: dict[str, Any] = {name: s[name].float() for name in names}
    velocities = {name: s[name].float() for name in ("v", "v_old", "v_ref")}
    models = Models(*(lambda x, t, c, name=name: velocities[name] for name in velocities))
    condition = Condition({"id": torch.zeros(2)})
    return models, Points(**rows, condition=condition, group=s["group"], exemplar=torch.zeros(2).bool())


@pytest.mark.parametrize(("name", "setting", "advantage", "expected"), HAND)
def test_losses_by_hand(name: str, setting: dict[str, Any], advantage: list[float], expected: list[float]) -> None:
    """The function, and the algorithm that hands everything to it."""
    s = {**by_hand(), "advantage": torch.tensor(advantage, dtype=torch.float64)}
    if name == "dpo":
        s["v_ref"] = s["v_old"]
    found = evaluate(getattr(objectives, name), s, **setting)
    tolerance = 2e-6 if name == "fdfo" else 1e-12  # the 1e-6 in its push
    close(found, torch.tensor(expected, dtype=torch.float64), atol=tolerance)
    loss, watched = ALGORITHMS[name](**setting).loss(*models_and_points(s))
    close(loss, torch.tensor(expected), atol=4e-6)
    close(watched["distance"], torch.tensor([2.5, 0.5]), atol=1e-6)


def test_awm_off_policy_by_hand() -> None:
    """log p of m = 1, 2.5 now and 0.5, 1 then: A = 0.5 keeps its ratio below 1, A = -1 is clipped at 0.8."""
    change = {
        "uniform": (-0.5, -1.5),
        "t": (-0.25, -0.375),
        "t2": (-0.125, -0.09375),
        "huber": (-0.5 * (1 - ROOTS[0]), -0.25 * (ROOTS[1] - 1)),
        "ghuber": (-2 * (1 - sqrt(ROOTS[0])), -(sqrt(ROOTS[1]) - 1)),
    }
    s = by_hand()
    for weighting, (first, second) in change.items():
        expected = torch.tensor([-0.5 * exp(first), max(exp(second), 0.8)], dtype=torch.float64)
        close(evaluate(awm_off_policy, s, weighting=weighting, clip=0.2), expected, atol=1e-9)
        algorithm = AWM(weighting, clip=0.2, k_old=0.0, k_ref=0.0, behaviour="old")  # type: ignore[arg-type]
        close(algorithm.loss(*models_and_points(s))[0], expected.float(), atol=1e-6)


def test_gradients_by_hand() -> None:
    s = by_hand()

    def check(found: Tensor, *rows: tuple[float, float]) -> None:
        close(found, torch.tensor(rows, dtype=torch.float64), atol=1e-9)

    # a (v - u), a = A / 5 = 0.5, -1: times 1, t, t^2, t / 2 sqrt(m), t / m^(3/4)
    slow = {"k_old": 0.0, "v_ref": None}
    check(gradient(awm, s, weighting="uniform", **slow), (0.5, -0.5), (-1, -2))
    check(gradient(awm, s, weighting="t", **slow), (0.25, -0.25), (-0.25, -0.5))
    check(gradient(awm, s, weighting="t2", **slow), (0.125, -0.125), (-0.0625, -0.125))
    check(gradient(awm, s, weighting="huber", **slow), (0.125, -0.125), (-0.125 / ROOTS[1], -0.25 / ROOTS[1]))
    check(gradient(awm, s, **slow), (0.25, -0.25), (-0.25 / 2.5**0.75, -0.5 / 2.5**0.75))
    check(gradient(awm, s, k_old=1.0, k_ref=0.0, advantage=0 * s["t"]), (2, -1), (0, 1))
    check(gradient(awm, s, k_old=0.0, k_ref=1.0, advantage=0 * s["t"]), (0, 1), (1, 1))
    # exp(m_old - m) = e^-0.5, e^-1.5: only the second, which is pushed away, has gone far enough; sigmoid(s) A (v - u)
    s["advantage"] = torch.tensor([2.0, -2.0], dtype=torch.float64)
    half = 2 / (1 + exp(1.75))
    check(gradient(dgpo, s, beta=0.5, k_ref=0.0), (half, -half), (0, 0))
    check(gradient(dgpo, s, beta=0.5, k_ref=0.0, v_old=None), (half, -half), (-half, -2 * half))
    # two rows carry the pair's loss: 2 sigmoid(-1) beta / 2 (v - u), beta = 2
    slope = 2 / (1 + exp(1))
    check(gradient(dpo, s, v_ref=s["v_old"], beta=2.0), (slope, -slope), (-slope, -2 * slope))


# Where losses must not break


@pytest.mark.parametrize("time", [0.0, 1.0])
@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_or_gradient_is_nan(name: str, time: float) -> None:
    """At the ends of time, without signal, on policy, with a perfect fit, and where the samples of a pair coincide."""
    for dtype in (torch.float64, torch.float32):
        s = {key: tensor if key == "group" else tensor.to(dtype) for key, tensor in samples().items()}
        s["t"] = torch.full_like(s["t"], time)
        s["x_t"] = s["x0"] if time == 0 else s["eps"]
        zero, same = torch.zeros_like(s["t"]), {"v": s["v_old"], "v_ref": s["v_old"]}
        fit = dict.fromkeys(("v", "v_old", "v_ref"), velocity(s))
        cases: list[dict[str, Tensor]] = [{}, {"advantage": zero}, same, fit, {"delta": torch.zeros_like(s["v"])}]
        for case in [*cases, {**fit, "advantage": zero}, {"x0": s["x0"][:1].expand_as(s["v"])}]:
            loss, slope = loss_and_gradient(name, {**s, **case})
            assert loss.isfinite().all()
            assert slope.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_float32_is_enough(name: str) -> None:
    """Losses and gradients within 1e-5 of those in float64."""
    s = samples()
    exact = loss_and_gradient(name, s)
    narrow = loss_and_gradient(name, {key: tensor if key == "group" else tensor.float() for key, tensor in s.items()})
    for found, expected in zip(narrow, exact, strict=True):
        assert found.dtype == torch.float32
        rows = expected.flatten(1) if expected.ndim > 1 else expected[:, None]
        error = (found.double() - expected).view_as(rows).abs().amax(1)
        assert (error <= 1e-5 * rows.abs().amax(1)).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_does_not_underflow(name: str, dtype: torch.dtype) -> None:
    """Velocities of 1e-4, whose squares are 0 in float16: float32 losses, as large as those of the same numbers."""
    s = samples()
    for key in ("v", "v_old", "v_ref", "x0", "eps", "x_t", "delta"):
        s[key] = (1e-4 * s[key]).to(dtype)
    assert (s["v"].half() ** 2 == 0).any()
    loss = LOSSES[name](s | {"t": s["t"].float(), "advantage": s["advantage"].float()})
    assert loss.dtype == torch.float32
    exact = LOSSES[name]({key: tensor if key == "group" else tensor.double() for key, tensor in s.items()})
    close(loss.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_reference_term_of_half_precision_is_positive(dtype: torch.dtype) -> None:
    """1e-8 apart in the mean square, where everything else is 0."""
    zero, near = torch.zeros(2, 8, dtype=dtype), torch.full((2, 8), 1e-4, dtype=dtype)
    s = {
        **dict.fromkeys(("v", "v_old", "x0", "eps", "x_t", "delta"), zero), "v_ref": near, "group": torch.zeros(2),
        "t": torch.ones(2), "advantage": torch.zeros(2),
    }  # fmt: skip
    held: list[Loss] = [awm, dgpo, diffusion_nft, fdfo, crd, *(partial(flowawr, form=form) for form in FORMS)]
    for function in held:
        close(evaluate(function, s, k_ref=1.0), torch.full((2,), 1e-8), atol=1e-10)
    close(evaluate(advantageflow, s, lam=1.0), torch.full((2,), 1e-8), atol=1e-10)


def test_terms_without_weight_need_no_tensor() -> None:
    """A coefficient of 0 and None are one thing; a weight per point is allowed."""
    s: dict[str, Any] = {**samples()}
    held: list[Loss] = [awm, diffusion_nft, fdfo, crd, *(partial(flowawr, form=form) for form in FORMS)]
    optional: list[tuple[Loss, str, dict[str, float]]] = [(function, "v_ref", {"k_ref": 0.0}) for function in held]
    optional += [(awm, "v_old", {"k_old": 0.0}), (advantageflow, "v_old", {"gamma": 0.0})]
    optional += [(rvm, "v_ref", {"beta": 0.0}), (ram, "v_old", {"residual": "policy"})]
    optional += [(advantageflow, "v_ref", {"lam": 0.0}), (dgpo, "v_old", {"clip": 1e9})]
    for function, name, setting in optional:
        without = {**s, name: None}
        assert torch.equal(evaluate(function, s, **setting), evaluate(function, without, **setting))
        close(gradient(function, s, **setting), gradient(function, without, **setting), atol=0)
    assert torch.equal(tether(s["v"], None, 1.0), torch.zeros(6, dtype=torch.float64))
    close(tether(s["v"], s["v_ref"], s["t"]), s["t"] * mean((s["v"] - s["v_ref"]) ** 2))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: evaluate(flowawr, samples(), form="exakt"),
        lambda: evaluate(awm, samples(), weighting="t^2"),
        lambda: evaluate(diffusion_nft, samples(), mode="one_hot"),
        lambda: FlowAWR(form="exakt"),  # type: ignore[arg-type]
        lambda: evaluate(ram, samples(), residual="both"),
        lambda: RAM(residual="both"),  # type: ignore[arg-type]
        lambda: VGRPO(scale="both"),  # type: ignore[arg-type]
        lambda: AWM(weighting="t^2"),  # type: ignore[arg-type]
        lambda: DiffusionNFT(mode="one_hot"),  # type: ignore[arg-type]
        lambda: ZScore("batch"),  # type: ignore[arg-type]
        lambda: Softmax(spread="batch"),  # type: ignore[arg-type]
        lambda: Softmax(gate="prompt"),  # type: ignore[arg-type]
        lambda: Times("logit_normal"),  # type: ignore[arg-type]
        lambda: Sampler(solver="heun"),  # type: ignore[arg-type]
    ],
)
def test_an_unknown_name_is_not_taken_for_another(ask: Callable[[], object]) -> None:
    with pytest.raises(ValueError, match=r"^unknown [a-z ]+ '"):
        ask()


def test_the_share_of_a_reference_is_one() -> None:
    for hold in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=r"hold, a share of k_ref, must lie in \[0, 1\]"):
            CRD(hold=hold)


@pytest.mark.parametrize("kind", [Renoise, RenoiseGroups, RenoisePairs])
def test_points_of_nothing_and_more_times_than_there_are_levels_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"(per_image|draws) must be between 1 and 10,000, not 0"):
        kind(0)
    done = Rollout.of([Drawn(torch.zeros(2, 3))], Condition({"": torch.zeros(1)}), torch.zeros(2).long(), torch.ones(4))
    assert len(kind(4, Times("levels"))(done, ("points",))) == 8
    with pytest.raises(ValueError, match=r"^5 distinct times per image cannot be drawn"):
        kind(5, Times("levels"))(done, ("points",))
