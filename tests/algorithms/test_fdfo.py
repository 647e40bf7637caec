"""FDFO: its ratio, its trust region, and the training points from pairs of trajectories."""

from __future__ import annotations

from dataclasses import replace
from math import log

import pytest
import torch
from losses import close, gradient, on_policy, real, samples

from flowward.algorithms import FDFO
from flowward.algorithms.fdfo import log_ratio
from flowward.algorithms.objectives import fdfo
from flowward.learning.credit import HalfDifference
from flowward.learning.points import Points, Visited
from flowward.process.flow import interpolate, mean, over
from flowward.process.policy import Condition, Models
from flowward.process.rollout import Rollout


def test_forward_09_two_forms_of_the_ratio() -> None:
    """-mean(d^2) - 2 mean(d push) = -mean((v - v_old + push)^2) + mean(push^2)."""
    s = samples()
    push = s["delta"] / over(mean(s["delta"] ** 2) + 1e-6, s["delta"])
    other = mean(push**2) - mean((s["v"] - s["v_old"] + push) ** 2)
    close(log_ratio(s["v"], s["v_old"], s["delta"]), other)


def test_forward_09_branches_are_symmetric() -> None:
    """On policy both branches of a pair give the same gradient."""
    s = on_policy()
    other = {**s, "advantage": -s["advantage"], "delta": -s["delta"]}
    close(gradient(fdfo, other), gradient(fdfo, s))


@pytest.mark.parametrize("advantage", [-3.0, -0.1, 0.2, 4.0])
def test_forward_09_rests_at_the_edge_of_the_trust_region(advantage: float) -> None:
    """rho = 1 + clip sign(A): the gradient vanishes there and points back on both sides."""
    s, clip = on_policy(), 0.03
    s["advantage"] = torch.full_like(s["t"], advantage)
    push = s["delta"] / over(mean(s["delta"] ** 2) + 1e-6, s["delta"])
    rest = log(1 + clip * (1 if advantage > 0 else -1))
    for level, sign in ((rest - 1e-3, -1), (rest, 0), (rest + 1e-3, 1)):
        step = -1 + (1 - level / mean(push**2)).sqrt()  # -step^2 mean(push^2) - 2 step mean(push^2) = level
        s["v"] = s["v_old"] + over(step, push) * push
        close(log_ratio(s["v"], s["v_old"], s["delta"]), torch.full_like(step, level))
        slope = -mean(gradient(fdfo, s, clip=clip) * push)  # of the loss along a growing ratio
        assert (slope.abs() < 1e-10).all() if sign == 0 else (slope.sign() == sign).all()


def test_forward_09_pairs_estimate_the_gradient_of_the_reward() -> None:
    """R = g . x in 32 dimensions and isotropic differences: a step down the loss is one along g, E = g / N."""
    count, n = 100_000, 32
    g, delta = real(n, seed=1), 0.1 * real(count, n, seed=2)
    zero = torch.zeros_like(delta)
    slopes = gradient(fdfo, {"v": zero, "v_old": zero, "delta": delta, "advantage": delta @ g})
    estimate = slopes.mean(0) / 2 * n
    assert torch.cosine_similarity(estimate, g, dim=0) > 0.999
    assert 0.99 < (estimate.norm() / g.norm()).item() < 1.01


def test_forward_14_every_visited_state_of_both_branches_is_a_point_once() -> None:
    """P pairs and S levels are 2 P S points; both branches see opposite halves of one difference, at every level."""
    pairs, levels = 5, torch.tensor([1.0, 0.7, 0.2], dtype=torch.float64)
    group = torch.tensor([3, 0, 0, 4, 1, 3, 2, 1, 4, 2])
    x0, states, velocities = real(10, 2).float(), real(10, 3, 2, seed=1).float(), real(10, 3, 2, seed=2).float()
    reward = real(10, seed=3)
    condition = Condition({"id": torch.arange(pairs)})
    done = Rollout(x0, condition, group, group, reward, HalfDifference()(reward, group), levels, states, velocities)
    points = Visited()(done, ("points", 0))
    assert (len(points), points.unit) == (2 * pairs * 3, 1)
    taken = points.take(torch.arange(len(points)))
    assert torch.equal(taken.x_t, states.flatten(0, 1))
    assert torch.equal(taken.known["old"], velocities.flatten(0, 1))
    close(taken.x_t, interpolate(taken.x_t - over(taken.t, x0) * taken.known["old"], taken.eps, taken.t), atol=1e-6)
    for number in range(10):
        mine = slice(3 * number, 3 * number + 3)
        other = next(i for i in range(10) if i != number and group[i] == group[number])
        assert torch.equal(taken.t[mine], levels.float())
        close(taken.delta[mine], ((x0[number] - x0[other]) / 2).expand(3, 2), atol=1e-7)  # type: ignore[index]
        close(taken.advantage[mine].double(), ((reward[number] - reward[other]) / 2).expand(3), atol=1e-7)
        assert (taken.condition.tensors["id"][mine] == group[number]).all()
    with pytest.raises(ValueError, match="in pairs"):
        Visited()(replace(done, condition=condition[:2], group=torch.arange(10) // 5), ("points", 0))


def test_points_beyond_the_trust_region_are_counted_on_both_sides() -> None:
    """A ratio that fell counts as one that rose: along delta log rho falls, against it it rises, 3 % apart from 1."""
    delta = real(1, 2, 3).float()
    x0 = torch.zeros_like(delta)
    none = torch.zeros(1)
    points = Points(
        x0, none, Condition({}), known={"old": x0}, x0=x0, eps=x0, advantage=none + 1, group=none.long(),
        exemplar=none.bool(), delta=delta,
    )  # fmt: skip
    for step, outside in ((0.02, 1.0), (-0.02, 1.0), (0.01, 0.0), (-0.01, 0.0)):
        models = Models(lambda x, t, c, step=step: step * delta, None, None)
        _, watched = FDFO(clip=0.03).loss(models, points)
        assert watched["outside"].tolist() == [outside]


def test_a_point_of_fdfo_that_is_far_away_is_given_up() -> None:
    """Where samples of a pair lie close the ratio could reach e^400; the loss stays a number, without a gradient."""
    delta = torch.full((1, 6), 0.05)
    v = (-delta / delta.square().mean()).requires_grad_()
    assert log_ratio(v, torch.zeros(1, 6), delta).item() == pytest.approx(400, rel=0.01)
    for sign in (1.0, -1.0):
        loss = fdfo(v, torch.zeros(1, 6), delta, torch.tensor([sign]))
        assert loss.isfinite().all()
        assert (torch.autograd.grad(loss.sum(), v)[0] == 0).all()
