"""Jumps: end times in a condition, the solver that makes them, and how their times are drawn."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_runs import TWO_TIMES
from torch import Tensor

from flowward import models
from flowward.learning.jumps import RenoiseJumps, trained_by
from flowward.learning.points import Renoise, RenoiseGroups, RenoisePairs, RenoiseShared, Visited
from flowward.process.noise import Noise
from flowward.process.policy import UNTIL, Condition
from flowward.process.rollout import Rollout, Sampler, bound_to
from flowward.process.times import JumpTimes
from flowward.system.streams import generator

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
T, S = torch.tensor([0.9, 0.5, 1.0]), torch.tensor([0.2, 0.5, 0.0])


def test_an_end_time_is_a_row_of_the_condition() -> None:
    """It goes where its row goes: into parts, into longer batches, and beside a blank prompt."""
    rows = Condition({"words": torch.ones(3, 2)}).until(S)
    assert torch.equal(rows[torch.tensor([2, 0])].tensors[UNTIL], S[[2, 0]])
    assert torch.equal(rows.cat(rows).tensors[UNTIL], torch.cat([S, S]))
    assert UNTIL not in Condition({"words": torch.ones(3, 2)}).tensors


def test_a_model_with_two_times_reads_it(tiny: str) -> None:
    """Absent, s is t; guidance keeps it where the prompt is taken away; an ordinary model does not look."""
    one, two = (models.load(name, None, "float32") for name in (tiny, tiny + TWO_TIMES))
    assert two.two_times and not one.two_times
    texts = ["a circle", "two rings", "a cross"]
    rows = two.encode(texts)
    with torch.no_grad():
        still, now, later = (two.velocity(X, T, each) for each in (rows, rows.until(T), rows.until(S)))
        assert torch.equal(still, now)
        moved = (later - still).flatten(1).abs().amax(1)
        assert moved[0] > 1e-3 and moved[1] == 0 and moved[2] > 1e-3
        guided = two.under("policy", 3.0)(X, T, rows.until(S))
        empty = two.velocity(X, T, two.encode([""] * 3).until(S))
        torch.testing.assert_close(guided, empty + 3 * (later - empty), rtol=0, atol=1e-4)
        assert torch.equal(one.velocity(X, T, one.encode(texts)), one.velocity(X, T, one.encode(texts).until(S)))


def test_a_sampler_of_jumps_tells_the_model_where_they_end() -> None:
    seen: list[tuple[float, float]] = []

    def velocity(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        seen.append((t[0].item(), condition.tensors[UNTIL][0].item()))
        return torch.ones_like(x)

    noise = Noise((2,), (("a", 0), ("a", 1)))
    drawn = Sampler(4, solver="jump")(velocity, Condition({"id": torch.zeros(2)}), noise)
    assert seen == [(1.0, 0.75), (0.75, 0.5), (0.5, 0.25), (0.25, 0.0)]
    torch.testing.assert_close(drawn.x0, noise.start() - 1)


def test_jumps_of_a_model_with_one_time_are_refused(tiny: str) -> None:
    with pytest.raises(ValueError, match=r"solver `jump` needs a model with two times.* has one"):
        bound_to(models.load(tiny, None, "float32"), Sampler(4, solver="jump"))
    assert bound_to(models.load(tiny + TWO_TIMES, None, "float32"), Sampler(4, solver="jump")).jumps


def test_times_of_jumps_have_their_shares() -> None:
    """t is the larger of two uniform numbers, so 2/3 on average; s is t, 0, or the smaller: 1/3 on average."""
    many = torch.stack([JumpTimes()(4, torch.zeros(0), generator("jumps", n)) for n in range(2000)])
    t, s = many.unbind(2)
    assert ((s == t).sum(1) == 2).all() and ((s == 0).sum(1) == 1).all()  # evenly within an image
    assert (s <= t).all() and t.mean() == pytest.approx(2 / 3, abs=0.01)
    free = (s < t) & (s > 0)
    assert s[free].mean() == pytest.approx(1 / 3, abs=0.02)
    shifted = JumpTimes(shift=3.0)(4, torch.zeros(0), generator("jumps", 5))
    torch.testing.assert_close(shifted, 3 * many[5] / (1 + 2 * many[5]))
    levels, drawn = torch.tensor([1.0, 0.7, 0.5, 0.2]), lambda **how: JumpTimes(**how)(4, levels, generator("jumps", 5))
    assert torch.equal(drawn(longest=1.0), many[5])
    for how, longest in (({}, 0.3), ({"longest": 0.1}, 0.1), ({"shift": 3.0}, 0.3)):
        short = drawn(**how)
        assert torch.equal(short[:, 0], drawn(**how, **{"longest": 1.0} if "longest" not in how else {})[:, 0])
        assert (short[:, 0] - short[:, 1]).max() == pytest.approx(longest, abs=1e-6)
    with pytest.raises(ValueError, match="longest jump must be above 0 and at most 1, not 0"):
        JumpTimes(longest=0.0)
    with pytest.raises(ValueError, match="are more than 1 together"):
        JumpTimes(same=0.8, data=0.3)


def test_points_are_jumps_of_noised_samples() -> None:
    x0, group = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)), torch.arange(6) // 3
    made = RenoiseJumps(4)(_rollout(x0, group), ("points", 0, 0))
    whole = made.take(torch.arange(len(made)))
    t, s = whole.t, whole.condition.tensors[UNTIL]
    assert len(made) == 24 and (s <= t).all() and (s == t).sum() == 12
    torch.testing.assert_close(whole.x_t, (1 - t[:, None]) * whole.x0 + t[:, None] * whole.eps)
    part = made.take(torch.tensor([7, 2]))  # a point is the same in whichever batch it lands
    assert torch.equal(part.x_t, whole.x_t[[7, 2]]) and torch.equal(part.condition.tensors[UNTIL], s[[7, 2]])
    for name, sign in (("ahead", 1), ("behind", -1)):  # on the line from x0 to eps, inside [0, 1]
        x, at, rows = whole.place(name)
        assert torch.equal(at, (t + sign * 0.005).clamp(0, 1)) and rows is whole.condition
        torch.testing.assert_close(x, whole.x_t + (at - t)[:, None] * (whole.eps - whole.x0))


def _rollout(x0: Tensor, group: Tensor) -> Rollout:
    nothing, levels = torch.zeros(len(x0)), torch.tensor([1.0, 0.75, 0.5, 0.25])
    return Rollout(x0, Condition({"id": torch.arange(2.0)}), group, group, nothing, nothing.double(), levels)


def test_points_say_what_they_train() -> None:
    forward = (Renoise(), RenoiseShared(), RenoiseGroups(), RenoisePairs())
    assert {trained_by(points) for points in forward} == {"velocity"}
    assert trained_by(RenoiseJumps()) == "jumps" and trained_by(Visited()) == trained_by(Path()) == "steps"
