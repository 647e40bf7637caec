"""AdvantageFlow point by point: its loss on one sample, where it would have no minimum, and what the class adds.

Numbers in names name laws; those about all that a noisy point may have come from are in test_advantageflow.py.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pytest
import torch
from losses import close, gradient_at, real
from torch import Tensor
from torch.autograd.functional import hessian

from flowward.algorithms import AdvantageFlow
from flowward.algorithms.objectives import advantageflow
from flowward.learning.credit import CentredRMS, ZScore, chain, clip
from flowward.learning.points import Points
from flowward.process.flow import clean, interpolate, mean
from flowward.process.policy import Condition, Models


def samples(count: int = 5, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Arguments of the loss on random tensors of shape [count, 2, 3]; advantages of both signs."""
    v, v_old, v_ref, x0, eps = real(5, count, 2, 3).to(dtype)
    t = torch.linspace(0.1, 0.95, count, dtype=dtype)
    advantage = torch.linspace(-1, 0.9, count, dtype=dtype)
    return {
        "v": v,
        "v_old": v_old,
        "v_ref": v_ref,
        "x_t": interpolate(x0, eps, t),
        "t": t,
        "x0": x0,
        "advantage": advantage,
    }


def over(a: Tensor) -> Tensor:
    return a.view(-1, 1, 1)


def test_01_spaces_differ_by_t_squared() -> None:
    """In velocity space the loss is A |v - u|^2 + gamma |v - v_old|^2 + lambda |v - v_ref|^2; in x0 space t^2 of it."""
    s = samples()
    u = (s["x_t"] - s["x0"]) / over(s["t"])
    velocity = advantageflow(**s, gamma=1.1, lam=0.3, space="velocity")
    terms = (mean((s["v"] - other) ** 2) for other in (u, s["v_old"], s["v_ref"]))
    fit, hold, reference = terms
    close(velocity, s["advantage"] * fit + 1.1 * hold + 0.3 * reference, atol=1e-12)
    close(advantageflow(**s, gamma=1.1, lam=0.3), s["t"] ** 2 * velocity, atol=1e-12)


@pytest.mark.parametrize("denominator", [False, True])
@pytest.mark.parametrize("lam", [0.0, 0.3])
@pytest.mark.parametrize("gamma", [1.1, 5.0, "1-A"])
def test_04_per_sample_minimiser(gamma: float | str, lam: float, denominator: bool) -> None:
    """(A u + gamma v_old + lambda v_ref) / (A + gamma + lambda), for A of either sign, with or without 1 / w."""
    s = samples()
    a = s["advantage"]
    g = 1 - a if gamma == "1-A" else torch.full_like(a, float(gamma))
    u = (s["x_t"] - s["x0"]) / over(s["t"])
    best = (over(a) * u + over(g) * s["v_old"] + lam * s["v_ref"]) / over(a + g + lam)
    loss = partial(advantageflow, **s, gamma=g, lam=lam)
    assert gradient_at(best, lambda v: loss(v=v, denominator=denominator)).abs().max() < 1e-10
    assert all((loss(v=best + 1e-2 * real(5, 2, 3, seed=seed)) > loss(v=best)).all() for seed in range(20))


@pytest.mark.parametrize("gamma", [1.1, 5.0])
def test_04_hessian(gamma: float) -> None:
    """2 (A + gamma + lambda) I per element of the mean, times t^2 in x0 space."""
    s = samples()
    for i in range(5):
        one = {name: tensor[i : i + 1] for name, tensor in s.items()}
        loss = partial(advantageflow, **one, gamma=gamma, lam=0.3)
        found = hessian(lambda v, loss=loss: loss(v=v).sum(), one["v"]).view(6, 6)
        expected = 2 * (one["advantage"] + gamma + 0.3) * one["t"] ** 2 / 6
        close(found, expected * torch.eye(6, dtype=torch.float64), atol=1e-10)


def diffusion_nft(v: Tensor, s: dict[str, Tensor], r: Tensor, beta: float) -> Tensor:
    """DiffusionNFT as its authors coded it: two branches about v_old, each divided by its own error, times 5 / beta."""
    total = torch.zeros_like(r)
    for share, sign in ((r, 1), (1 - r, -1)):
        f = clean(s["x_t"], s["t"], s["v_old"] + sign * beta * (v - s["v_old"]))
        total = total + share * mean((f - s["x0"]) ** 2) / mean((f - s["x0"]).detach().abs()).clamp_min(1e-5)
    return 5 / beta * total


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_13_gradient_of_nft_on_policy(beta: float) -> None:
    """At v = v_old it is 5 times AdvantageFlow's with A = 2r - 1 and gamma = beta - A; elsewhere it is not."""
    s = samples()
    r = (s["advantage"] + 1) / 2
    ours = partial(advantageflow, **s, gamma=beta - s["advantage"], lam=0.0, denominator=True)

    def gap(v: Tensor) -> float:
        nft = gradient_at(v, lambda v: diffusion_nft(v, s, r, beta))
        return (nft - 5 * gradient_at(v, lambda v: ours(v=v))).abs().max().item()

    assert gap(s["v_old"]) < 1e-12
    assert gap(s["v"]) > 1e-2


@pytest.mark.parametrize("gamma", [1.1, "1-A"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_13_gradient_on_policy(dtype: torch.dtype, tolerance: float, gamma: Any) -> None:
    """At v = v_old = v_ref it is -(2/N) A t e / mean|e|, e = u - v_old: neither gamma nor lambda is in it."""
    s = samples(dtype=dtype)
    s["v_ref"] = s["v_old"]
    g = 1 - s["advantage"] if gamma == "1-A" else gamma
    found = gradient_at(s["v_old"], lambda v: advantageflow(**{**s, "v": v}, gamma=g, lam=0.3, denominator=True))
    e = (s["x_t"].double() - s["x0"].double()) / over(s["t"].double()) - s["v_old"].double()
    expected = -2 / 6 * over(s["advantage"].double() * s["t"].double() / mean(e.abs())) * e
    assert found.dtype == dtype
    close(found.double(), expected, atol=tolerance)


def test_14_denominator_is_a_constant_per_point() -> None:
    """Value and gradient are those without it, divided by mean|f - x0|: no gradient flows into it."""
    s = samples()
    w = mean((clean(s["x_t"], s["t"], s["v"]) - s["x0"]).abs())
    bare = partial(advantageflow, **s, gamma=1.1, lam=0.3)
    close(bare(denominator=True), bare() / w, atol=1e-12)
    found = gradient_at(s["v"], lambda v: bare(v=v, denominator=True))
    close(found, gradient_at(s["v"], lambda v: bare(v=v)) / over(w), atol=1e-12)


def test_14_denominator_does_not_move_the_minimiser() -> None:
    """Not even where it is at its floor, 1 / w = 1e5: a fit without any anchor, at f = x0."""
    s = samples()
    u = (s["x_t"] - s["x0"]) / over(s["t"])
    setting: dict[str, Any] = {
        **s,
        "v_old": None,
        "v_ref": None,
        "advantage": torch.ones_like(s["t"]),
        "denominator": True,
    }
    assert gradient_at(u, lambda v: advantageflow(**{**setting, "v": v})).abs().max() < 1e-8
    near = u + 1e-7 / over(s["t"])  # f = x0 - 1e-7
    close(advantageflow(**{**setting, "v": near}), torch.full_like(s["t"], 1e-14 / 1e-5), atol=1e-15)


@pytest.mark.parametrize(
    ("gamma", "end"),
    [(0.0, 1 - 1.2**200), (0.5, 2 - 2 * 1.1**200), (1.0, -40.0), (1.1, -10 + 10 * 0.98**200), (2.0, -1.0)],
)
def test_17_negative_curvature_diverges(gamma: float, end: float) -> None:
    """Gradient descent on one point with A = -1 and unit residual: away for gamma < 1, to -1 / (gamma - 1) above."""
    v, zero, one = torch.zeros(1, 1, dtype=torch.float64), torch.zeros(1, 1), torch.ones(1)
    for _ in range(200):
        # x_t = 1 and x0 = 0 at t = 1, so u = 1
        v = v - 0.1 * gradient_at(v, lambda v: advantageflow(v, zero, None, one[:, None], one, zero, -one, gamma, 0.0))
    assert v.item() == pytest.approx(end, rel=1e-9)


@pytest.mark.parametrize(
    "setting", [{"gamma": 0.5}, {"gamma": 1.0, "lam": 0.0}, {"gamma": 1.1, "credit": CentredRMS(2.0)}]
)
def test_17_a_loss_without_minimum_is_refused(setting: dict[str, Any]) -> None:
    """In a sentence that names the curvature and what would mend it."""
    with pytest.raises(ValueError, match=r"no minimum.*A \+ gamma \+ lam.*raise gamma above.*1-A.*credit\.clip"):
        AdvantageFlow(**setting)


def test_17_a_credit_without_bound_is_refused() -> None:
    """One of one's own need not say how low it goes."""
    with pytest.raises(ValueError, match=r"no minimum: at A = -inf.*set gamma to 1-A, or clip the advantages"):
        AdvantageFlow(gamma=1.1, credit=ZScore())  # type: ignore[arg-type]
    AdvantageFlow(credit=ZScore())  # type: ignore[arg-type]
    AdvantageFlow(gamma=1.1, credit=chain(ZScore(), clip(1.0)))  # type: ignore[arg-type]
    for gamma, said in (("1-a", "unknown gamma '1-a'; did you mean '1-A'?"), (float("inf"), "gamma must be a finite")):
        with pytest.raises(ValueError, match=re.escape(said)):
            AdvantageFlow(gamma=gamma)  # type: ignore[arg-type]


def test_17_the_mend_that_the_refusal_names_works() -> None:
    with pytest.raises(ValueError, match=r"raise gamma above 0\.999, "):
        AdvantageFlow(gamma=0.5)
    AdvantageFlow(gamma=0.9991)
    AdvantageFlow(gamma="1-A", credit=CentredRMS(5.0), lam=0.0)
    AdvantageFlow(gamma=0.5, credit=CentredRMS(0.4))
    with pytest.raises(ValueError, match="lam must not be negative"):
        AdvantageFlow(lam=-1e-3)


def test_velocities_that_are_not_needed_may_be_none() -> None:
    """None is a coefficient of 0."""
    s = samples()
    rest = {name: s[name] for name in ("v", "x_t", "t", "x0", "advantage")}
    fit = s["advantage"] * mean((clean(s["x_t"], s["t"], s["v"]) - s["x0"]) ** 2)
    close(advantageflow(v_old=None, v_ref=None, **rest), fit, atol=1e-14)
    close(advantageflow(**s, gamma=0.0, lam=0.0), fit, atol=1e-14)
    without = advantageflow(v_old=s["v_old"], v_ref=None, **rest)
    close(advantageflow(**s, lam=0.0), without, atol=1e-14)
    assert (advantageflow(**s) != without).all()


def test_coefficients_per_point() -> None:
    """gamma and lambda may be one number per point."""
    s = samples()
    each = torch.full_like(s["t"], 0.7)
    close(advantageflow(**s, gamma=each, lam=each / 2), advantageflow(**s, gamma=0.7, lam=0.35), atol=1e-14)
    own = advantageflow(**s, gamma=s["t"], lam=0.0)
    close(own[2:3], advantageflow(**{k: v[2:3] for k, v in s.items()}, gamma=s["t"][2].item(), lam=0.0), atol=1e-14)


def points_and_models() -> tuple[Points, Models]:
    rng = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 4, 2, 3, generator=rng)
    t = torch.tensor([0.1, 0.4, 0.7, 1.0])
    points = Points(
        x_t=interpolate(x0, eps, t),
        t=t,
        x0=x0,
        eps=eps,
        advantage=torch.tensor([-1.0, -0.2, 0.3, 1.0]),
        condition=Condition({"id": torch.arange(4)}),
        group=torch.arange(4),
        exemplar=torch.zeros(4, dtype=torch.bool),
    )
    velocities = [lambda x, t, c, k=k: k * x * c.tensors["id"].view(-1, 1, 1) + t.view(-1, 1, 1) for k in (1, 2, 3)]
    return points, Models(*velocities)


@pytest.mark.parametrize("denominator", [False, True])
@pytest.mark.parametrize("gamma", [1.1, "1-A"])
def test_algorithm_hands_everything_to_its_equation(gamma: Any, denominator: bool) -> None:
    """The class is the function with its own settings, on x_t = (1 - t) x0 + t eps."""
    points, models = points_and_models()
    loss, metrics = AdvantageFlow(gamma=gamma, lam=0.2, denominator=denominator).loss(models, points)
    x_t = interpolate(points.x0, points.eps, points.t)
    each = models.velocities.values()
    v, v_old, v_ref = (velocity(x_t, points.t, points.condition) for velocity in each)
    a = points.advantage
    g = 1 - a if gamma == "1-A" else 1.1
    expected = advantageflow(v, v_old, v_ref, x_t, points.t, points.x0, a, g, 0.2, denominator)
    close(loss, expected, atol=1e-5)
    close(metrics["distance"], mean((v - v_old) ** 2), atol=1e-5)
    close(metrics["residual"], mean((points.eps - points.x0 - v_old) ** 2), atol=1e-5)
    close(metrics["curvature_min"], a + g + 0.2, atol=1e-6)


def test_reference_is_only_asked_for_when_it_has_a_weight() -> None:
    points, models = points_and_models()

    def missing(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        raise AssertionError("this setting has no reference term")

    algorithm = AdvantageFlow(lam=0.0)
    assert set(algorithm.anchors) == {"old"}
    assert set(AdvantageFlow().anchors) == {"old", "reference"}
    loss, _ = algorithm.loss(Models(**{**models.velocities, "reference": missing}), points)
    assert loss.isfinite().all()


def test_calibration_moves_part_of_the_anchor_to_the_samples() -> None:
    """The class with mu is the equation with A + mu and gamma - mu; the curvature stays."""
    points, models = points_and_models()
    a = points.advantage
    v, v_old = (models.at(name, points) for name in ("policy", "old"))
    for gamma, hold in ((1.1, 0.8), ("1-A", 0.7 - a)):
        algorithm = AdvantageFlow(gamma=gamma, lam=0.0, denominator=False, calibration=0.3)  # type: ignore[arg-type]
        expected = advantageflow(v, v_old, None, points.x_t, points.t, points.x0, a + 0.3, hold, 0.0)
        close(algorithm.loss(models, points)[0], expected, atol=1e-4)
        assert torch.equal(algorithm.curvature(a), AdvantageFlow(gamma=gamma, lam=0.0).curvature(a))  # type: ignore[arg-type]
