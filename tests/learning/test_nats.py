"""KL in nats from training points: the density of their times, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward.learning.points import Points
from flowward.learning.terms import EARLIEST, departure, divergences, nats
from flowward.process.flow import grid
from flowward.process.policy import Condition
from flowward.process.times import Times

EVEN = grid(10, 1.0, "linear")[:-1]
SHIFTED = grid(10, 3.0, "sd3")[:-1]


@pytest.mark.parametrize(
    ("times", "count", "levels", "bound"),
    [
        (Times(), 4, EVEN, 0.01),
        (Times(shift=3.0), 4, EVEN, 0.01),
        (Times(low=0.02, high=0.98), 4, EVEN, 0.01),
        (Times("power"), 4, EVEN, 0.01),
        (Times("stratified", shift=0.5), 4, EVEN, 0.01),
        (Times("logit-normal"), 4, EVEN, 0.02),
        (Times("logit-normal", shift=2.0), 4, EVEN, 0.02),
        (Times("levels"), 4, EVEN, 0.02),
        (Times("levels", last=9), 9, SHIFTED, 0.1),
        (Times("bins"), 4, EVEN, 0.02),  # parts of 2 and of 3 levels
        (Times("bins", last=8), 20, EVEN, 0.1),  # more parts than levels; none below .3
    ],
)
def test_a_mean_over_points_is_an_integral_over_times(times: Times, count: int, levels: Tensor, bound: float) -> None:
    """Of f = t (1 - t)^2, which is 1/12, whatever the times are drawn from; a grid has the error of its trapezoids."""
    draw = torch.Generator().manual_seed(0)
    t = torch.cat([times(count, levels, draw) for _ in range(8000 // count)])
    width = times.width(t, count, levels)
    assert width is not None and width.dtype == torch.float32 and (width >= 0).all()
    found = (width * t * (1 - t) ** 2).double()
    error = 3 * found.std().item() / len(t) ** 0.5
    assert found.mean().item() == pytest.approx(1 / 12, abs=bound / 12 + error)


@pytest.mark.parametrize(
    "times",
    [
        Times(low=0.1),
        Times(high=0.9),
        Times(low=0.03, shift=3.0),
        Times("levels", first=6),
        Times("bins", last=4),
    ],
)
def test_times_that_cannot_stand_for_all(times: Times) -> None:
    assert times.width(torch.tensor([0.5, 0.6]), 2, EVEN) is None


def points(many: int = 6, **changes: Any) -> Points:
    draw = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, many, 3, 2, generator=draw)
    number = torch.arange(many)
    given: dict[str, Any] = {
        "x_t": x0, "t": torch.linspace(0.1, 0.9, many), "condition": Condition({"id": number}), "x0": x0, "eps": eps,
        "advantage": torch.ones(many), "group": number, "exemplar": torch.zeros(many).bool(),
        "width": torch.linspace(1, 2, many),
    }  # fmt: skip
    return Points(**{**given, **changes})


def test_nats_by_hand() -> None:
    """D width (1 - t) / t mean(d^2), and nothing below .05."""
    v, other = torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 3.0]]), torch.ones(3, 2)
    t, width = torch.tensor([0.25, 0.5, EARLIEST - 1e-3]), torch.tensor([1.0, 2.0, 1.0])
    assert nats(v, other, t, width).tolist() == pytest.approx([12.0, 8.0, 0.0])
    assert nats(v.bfloat16(), other.bfloat16(), t, width).dtype == torch.float32


def test_which_pairs_are_compared() -> None:
    """old and policy; old and reference; without old, policy and reference."""
    one = points()
    v, v_old, v_ref = torch.randn(3, 6, 3, 2, generator=torch.Generator().manual_seed(2))
    assert one.width is not None
    found = departure(one, v, v_old, v_ref, calibrated=True)
    torch.testing.assert_close(found["old_nats"], nats(v, v_old, one.t, one.width))
    torch.testing.assert_close(found["reference_nats"], nats(v_old, v_ref, one.t, one.width))
    assert found["old_nats"].mean() > 0 and {*departure(one, v, v_old, None, calibrated=True)} == {
        "distance", "residual", "old_nats",
    }  # fmt: skip
    alone = departure(one, v, None, v_ref, calibrated=True)
    assert {*alone} == {"residual", "reference_nats"}
    torch.testing.assert_close(alone["reference_nats"], nats(v, v_ref, one.t, one.width))


def test_where_no_kl_is_known() -> None:
    """Guidance, unknown times, given images alone; of the others only the policy's own count."""
    one = points()
    v, v_old = torch.zeros(6, 3, 2), torch.ones(6, 3, 2)
    assert divergences(one, v, v_old, None, calibrated=False) == {}
    assert divergences(replace(one, width=None), v, v_old, None, calibrated=True) == {}
    assert divergences(replace(one, exemplar=torch.ones(6).bool()), v, v_old, None, calibrated=True) == {}
    given = torch.tensor([True, False, False, True, False, False])
    some = divergences(replace(one, exemplar=given), v, v_old, None, calibrated=True)["old_nats"]
    whole = divergences(one, v, v_old, None, calibrated=True)["old_nats"]
    assert torch.equal(some, whole[~given])
