"""Batch arithmetic: what must divide what, that accumulation changes nothing, and the size of each step."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, close, equal, plain, small, snapshot, trainer

from flowward.learning.points import Renoise


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"group_size": 0}, "group_size is 0"),
        (
            {"images_per_update": 10},
            "10 images per iteration cannot .* groups of 4; try --group-size 2, 5 or 10",
        ),
        (
            {"images_per_update": 6, "updates_per_iteration": 3},
            "18 images .* groups of 4; try --group-size 2, 3 or 6",
        ),
        ({"images_per_update": 0}, "images_per_update must be at least 1, not 0"),
        ({"updates_per_iteration": 0}, "updates_per_iteration must be at least 1, not 0"),
        ({"schedule": "linear"}, "unknown schedule of the learning rate 'linear'"),
        ({"microbatch": 0}, "microbatch must be between 1 and 1,000,000,000, not 0"),
        ({"rollout_batch": -1}, "rollout_batch must be between 1 and 1,000,000,000, not -1"),
        ({"checkpoint_every": 0}, "checkpoint_every must be at least 1, not 0"),
        ({"iterations": -1}, "iterations must not be negative, it is -1"),
        ({"warmup": -1}, "warmup must not be negative, it is -1"),
        ({"seed": -1}, "seed must not be negative, it is -1"),
        ({"learning_rate": 0.0}, "learning_rate must be a positive number, not 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be a positive number, not nan"),
        ({"gradient_clip": float("inf")}, "gradient_clip must be a positive number, not inf"),
    ],
)
def test_a_run_that_does_not_come_out_even_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**changes)


@pytest.mark.parametrize(
    ("per_image", "changes", "said"),
    [
        (
            1,
            {"microbatch": 3},
            "give 8 training points, which cannot be split into microbatches of 3; try --microbatch 2",
        ),
        (
            3,
            {"microbatch": 16},
            "8 images per update give 24 training points, which cannot be split into microbatches of 16",
        ),
        (1, {"microbatch": 6, "updates_per_iteration": 3}, "8 images per update give 8 training points"),
    ],
)
def test_microbatches_that_do_not_divide_are_refused(
    tiny: str, per_image: int, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(tiny, algorithm(points=Renoise(per_image)), **changes)


def test_where_batches_are_found_by_memory_the_last_may_be_smaller(tiny: str) -> None:
    """A preset's microbatch need not divide the points of another number of images: the update is the same."""
    found = []
    for changes in ({"microbatch": 8}, {"microbatch": 3, "memory": "auto"}):
        one = plain(trainer(tiny, **changes))
        one.step()
        found.append(snapshot(one.policy))
    close(*found)


def test_nothing_is_rounded(tiny: str) -> None:
    run = small(images_per_update=6, updates_per_iteration=2, group_size=3)
    assert (run.images, run.groups) == (12, 4)
    assert trainer(tiny, microbatch=100).step().index == 1  # one microbatch that is larger than all points


def test_accumulation_gives_the_same_update(tiny: str) -> None:
    found = []
    for microbatch in (8, 32):
        one = plain(trainer(tiny, images_per_update=32, microbatch=microbatch))
        before = snapshot(one.policy)
        metrics = one.step().metrics
        found.append((snapshot(one.policy), metrics))
        assert not equal(before, found[-1][0])
    close(found[0][0], found[1][0])
    assert found[0][1] == pytest.approx(found[1][1], abs=1e-5)


def test_the_gradient_is_that_of_the_mean_over_points(tiny: str) -> None:
    one = plain(trainer(tiny, images_per_update=8, microbatch=2, gradient_clip=1e9))
    one.step()  # leaves no gradient behind
    rollout, images = one.sample([TEXTS[0], TEXTS[1]], 1)
    points = one.algorithm.points(one.credit(rollout, bright(images, [])[:, None], list(TEXTS)), ("points", 0, 1))
    loss, _ = one.algorithm.loss(one.models, points.take(torch.arange(8)))
    expected = torch.autograd.grad(loss.mean(), one.parameters, allow_unused=True)
    before = [parameter.detach().clone() for parameter in one.parameters]
    norm = one.learn(points)["gradient_norm"]
    for old, new, gradient in zip(before, one.parameters, expected, strict=True):
        if gradient is not None:
            torch.testing.assert_close(old - new, gradient, rtol=0, atol=1e-5)
    squares = [gradient.square().sum() for gradient in expected if gradient is not None]
    assert norm == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-3)


def test_large_gradients_are_clipped(tiny: str) -> None:
    one = plain(trainer(tiny, gradient_clip=1e-3))
    before = snapshot(one.policy)
    assert one.step().metrics["gradient_norm"] > 1e-3
    moved = sum((before[key] - tensor).square().sum().item() for key, tensor in snapshot(one.policy).items())
    assert moved**0.5 == pytest.approx(1e-3, rel=1e-2)


def test_the_learning_rate_rises_over_the_first_updates(tiny: str) -> None:
    one = trainer(tiny, warmup=5, updates_per_iteration=2, learning_rate=1e-3)
    rates, original = [], one.optimiser.step
    one.optimiser.step = lambda: rates.append(one.optimiser.param_groups[0]["lr"]) or original()  # type: ignore
    for _ in range(4):
        one.step()
    assert rates == pytest.approx([2e-4, 4e-4, 6e-4, 8e-4, 1e-3, 1e-3, 1e-3, 1e-3])


def test_a_cosine_schedule_ends_at_zero() -> None:
    run = small(schedule="cosine", warmup=0, iterations=4, updates_per_iteration=2, images_per_update=4)
    half = [0.5 * (1 + math.cos(math.pi * k / 8)) for k in range(8)]
    assert [run.rate(k) for k in range(8)] == pytest.approx([1e-3 * share for share in half])
    assert run.rate(8) == pytest.approx(0, abs=1e-12)
