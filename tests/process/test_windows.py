"""Which steps a window covers; P3 is the number of section 8 of the notes on the reverse process."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from typing import Any, get_args

import pytest
import torch

from flowward.process.windows import Order, Window

ORDERS: tuple[Order, ...] = get_args(Order)


def starts(window: Window, steps: int, iterations: int, seed: int = 0) -> list[int]:
    return [window.steps(steps, seed, iteration).start for iteration in range(iterations)]


def held(window: Window, steps: int, iterations: int) -> list[tuple[int, int]]:
    """(start, for how many iterations in a row)."""
    return [(start, len(list(same))) for start, same in groupby(starts(window, steps, iterations))]


def test_p3_progressive() -> None:
    """MixGRPO's settings: 4 of 25 steps, moved on by one every 25 iterations."""
    window = Window(size=4, order="progressive", every=25, stride=1)
    assert window == Window(4)
    seen = {iteration: window.steps(25, 0, iteration) for iteration in (0, 24, 25, 299)}
    assert seen == {0: range(0, 4), 24: range(0, 4), 25: range(1, 5), 299: range(11, 15)}
    assert held(window, 25, 525) == [(start, 25) for start in range(21)]


@pytest.mark.parametrize(("stride", "expected"), [(1, [0, 1, 2, 3, 4, 5]), (2, [0, 2, 4]), (4, [0, 4]), (9, [0])])
def test_p3_stride(stride: int, expected: list[int]) -> None:
    """Without overlap where it is the size; what does not fit at the end is left out."""
    assert Window(size=4, stride=stride).positions(10) == (expected, 4)


def test_p3_exponential() -> None:
    """25 iterations for starts up to 13, then fewer and fewer."""
    times = [25] * 14 + [23, 21, 19, 17, 16, 14, 13]
    window = Window(4, "exponential")
    assert held(window, 25, sum(times)) == list(zip(range(21), times, strict=True))
    longer = Window(order="exponential").holds(list(range(24)))
    assert longer == [*times, 12, 11, 10]


def test_p3_exponential_counts_from_its_knee() -> None:
    """In steps of the sampler, not in positions."""
    window = Window(1, "exponential", every=10, stride=2, knee=2, decay=0.5)
    assert window.holds([0, 2, 4, 6]) == [10, 10, 4, 2]  # 10 / e = 3.7 and 10 / e^2 = 1.4


def test_p3_linear() -> None:
    """From `every` down to 1 in equal steps."""
    times = [25, 22, 18, 15, 11, 8, 4, 1]
    assert held(Window(4, "linear", every=25), 12, sum(times)) == list(zip(range(8), times, strict=True))
    assert Window(order="linear", every=9).holds([0, 1, 2, 3, 4]) == [9, 7, 5, 3, 1]
    assert Window(order="linear", every=9).holds([0]) == [9]
    assert Window(order="linear", every=1).holds([0, 1, 2]) == [1, 1, 1]


@pytest.mark.parametrize("order", ["progressive", "linear", "exponential"])
def test_p3_roll_back(order: Order) -> None:
    """After the last position comes the first, for as long as before; the schedule repeats."""
    window = Window(size=2, order=order, every=5, knee=1)
    period = sum(window.holds(window.positions(8)[0]))
    once = starts(window, 8, period)
    assert once[0] == 0
    assert once[-1] == 5
    assert starts(window, 8, 3 * period) == 3 * once


@pytest.mark.parametrize("order", ["progressive", "linear", "exponential"])
def test_p3_stay(order: Order) -> None:
    """Or the last position is kept for good."""
    window, back = (Window(size=2, order=order, every=5, knee=1, roll_back=roll) for roll in (False, True))
    period = sum(window.holds(window.positions(8)[0]))
    assert starts(window, 8, period) == starts(back, 8, period)
    assert {window.steps(8, 0, iteration).start for iteration in (*range(period, 100), 10**6)} == {5}


def test_p3_frozen() -> None:
    """Never moves from the first position."""
    window = Window(size=3, order="frozen", every=2, low=1)
    assert {window.steps(10, seed, iteration) for seed in range(3) for iteration in (*range(50), 10**6)} == {
        range(1, 4)
    }


def test_p3_random_is_a_function_of_seed_and_iteration() -> None:
    """Whatever was asked before, whatever torch's own generator holds, which it leaves alone."""
    window = Window(4, "random")
    forward = starts(window, 25, 60, seed=3)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    backward = [Window(4, "random").steps(25, 3, iteration).start for iteration in reversed(range(60))]
    assert forward == backward[::-1]
    assert torch.equal(torch.get_rng_state(), state)
    assert forward != starts(window, 25, 60, seed=4)
    assert forward[1:] != forward[:-1]


def test_p3_random_covers_every_position_evenly() -> None:
    """21 positions in 4200 iterations: 200 each, give or take five standard deviations."""
    seen = Counter(starts(Window(4, "random"), 25, 4200))
    assert set(seen) == set(range(21))
    assert all(abs(count - 200) < 5 * 200**0.5 for count in seen.values())


def test_p3_random_keeps_to_the_stride_and_the_range() -> None:
    assert set(starts(Window(size=2, order="random", stride=3, low=1, high=9), 12, 200)) == {1, 4, 7}


def test_p3_other_orders_take_no_chances() -> None:
    for order in ORDERS:
        if order not in ("random", "per-prompt"):
            assert starts(Window(4, order), 25, 300, seed=0) == starts(Window(4, order), 25, 300, seed=1)


@pytest.mark.parametrize("roll_back", [True, False])
@pytest.mark.parametrize("order", ORDERS)
def test_p3_never_empty_and_never_the_last_step(order: Order, roll_back: bool) -> None:
    """Through two rounds of every sampler of 2 to 9 steps, for every window that fits."""
    for steps in range(2, 10):
        for size in range(1, steps):
            for stride in range(1, 4):
                window = Window(size, order, 2, stride, knee=3, roll_back=roll_back)
                for iteration in range(2 * sum(window.holds(window.positions(steps)[0])) + 1):
                    covered = window.steps(steps, 0, iteration)
                    assert len(covered) == size
                    assert covered[0] >= 0
                    assert covered[-1] <= steps - 2


@pytest.mark.parametrize("order", ORDERS)
def test_p3_a_range_of_its_own(order: Order) -> None:
    window = Window(size=2, order=order, every=3, low=2, high=6)
    seen = {window.steps(20, 0, iteration) for iteration in range(100)}
    assert seen == ({range(2, 4)} if order == "frozen" else {range(2, 4), range(3, 5), range(4, 6)})


def test_p3_a_range_up_to_the_last_step() -> None:
    """Is what None means."""
    assert Window(4, high=9).positions(10) == Window(4).positions(10) == ([0, 1, 2, 3, 4, 5], 4)


@pytest.mark.parametrize("order", ORDERS)
def test_p3_all_steps_but_the_last_without_a_size(order: Order) -> None:
    """Or all of its range; there is one position, whatever the order."""
    window, part = Window(order=order, every=2), Window(order=order, every=2, low=2, high=5)
    for steps in (2, 6, 25):
        assert {window.steps(steps, 0, iteration) for iteration in range(10)} == {range(steps - 1)}
    assert {part.steps(9, 0, iteration) for iteration in range(10)} == {range(2, 5)}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"size": 0}, "size must be a positive number, not 0"),
        ({"size": -1}, "size must be a positive number"),
        ({"every": 0}, "every must be a positive number"),
        ({"stride": 0}, "stride must be a positive number"),
        ({"stride": -2}, "stride must be a positive number"),
        ({"low": -1}, "low, the first step of the window, must be at least 0, not -1"),
    ],
)
def test_p3_a_window_that_cannot_be_is_refused(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Window(**arguments)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    ("arguments", "steps", "says"),
    [
        ({"size": 4}, 4, "a window of 4 steps does not fit into steps 0 to 2 of 4 sampling steps"),
        ({}, 1, "a window of 1 step does not fit into .* of 1 sampling steps"),
        ({"size": 4}, 1, "a window of 4 steps does not fit into .* of 1 sampling steps"),
        ({"size": 4, "low": 6}, 10, "a window of 4 steps does not fit into steps 6 to 8 of 10 sampling steps"),
        (
            {"size": 4, "low": 3, "high": 6},
            10,
            "a window of 4 steps does not fit into steps 3 to 5",
        ),
        ({"low": 6, "high": 6}, 10, "a window of 1 step does not fit"),
        ({"high": 10}, 10, "the window reaches step 9, but with 10 steps the last trainable one is number 8"),
    ],
)
def test_p3_a_window_that_does_not_fit_is_refused(
    order: Order, arguments: dict[str, Any], steps: int, says: str
) -> None:
    window = Window(order=order, **arguments)
    with pytest.raises(ValueError, match=says):
        window.steps(steps, 0, 0)
