"""What trees cost, and what they give to train on, as in the papers; P4 and P5 are numbers of the notes' section 8."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from walks import Counted, drawn, everything, family, rollout, velocity

from flowward import ALGORITHMS
from flowward.algorithms import G2RPO, DanceGRPO, MixGRPOFlash, TempFlowGRPO
from flowward.process.flow import grid
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Models
from flowward.process.windows import Window

# P4: Flash


def test_p4_the_coarse_grid_ends_at_zero() -> None:
    """For every window, share and grid; it starts where the window ends, decreases, and leaves the rest as it was."""
    for steps, shift, kind in ((25, 3.0, "linear"), (10, 3.0, "sd3"), (10, 1.0, "linear"), (3, 5.0, "linear")):
        for tail in (0.05, 0.2, 0.4, 1.0):
            chain = Chain(steps, shift, kind, window=Window(1), tail=tail)  # type: ignore[arg-type]
            for stop in range(1, steps):
                rest = chain.after(stop)
                assert rest[0] == chain.times[stop]
                assert rest[-1] == 0
                assert all(t > s for t, s in pairwise(rest))
            for iteration in range(0, 25 * (steps - 1), 25):
                tree = chain.at(0, iteration)
                before = [t for segment in tree.segments[:-1] for t in segment.times[:-1]]
                assert tuple(before) == chain.times[: len(before)]


def test_p4_the_coarse_grid_is_even_in_unshifted_time() -> None:
    chain = MixGRPOFlash().rollout
    rest = chain.after(10)
    assert len(rest) == 6  # int((25 - 9) * 0.4) = 6 points
    unshifted = torch.tensor([t / (3 - 2 * t) for t in rest])
    assert torch.allclose(unshifted.diff(), unshifted.diff()[:1], atol=1e-7)
    assert Chain(25, 3.0, "linear", window=Window(4), tail=None).after(10) == chain.times[10:]


def evaluations(algorithm: Any, iteration: int = 0) -> float:
    """Per sample."""
    tree, counted = algorithm.rollout.at(0, iteration), Counted()
    found = drawn(tree, size=tree.leaves, field=counted)
    return counted.rows / len(found.x0)


def test_p4_evaluations_after_the_window() -> None:
    """11 with the window at the first steps, 15.6 over 300 iterations of 20 each, and 7 where it stays there."""
    flash = MixGRPOFlash()
    assert evaluations(flash) == 11

    def over_a_run(every: int) -> float:
        moved = replace(flash.rollout, window=replace(flash.rollout.window, every=every))
        counts = {i: evaluations(replace(flash, rollout=moved), i) for i in range(0, 300, every)}
        return sum(counts[i - i % every] for i in range(300)) / 300

    assert over_a_run(20) == pytest.approx(15.6)
    assert over_a_run(25) == pytest.approx(176 / 12)  # starts 0 to 11; the notes' formula, whose text says 15.0
    frozen = replace(flash.rollout, window=Window(4, "frozen", high=23), tail=0.2)
    assert {evaluations(replace(flash, rollout=frozen), i) for i in (0, 299)} == {7}


def test_p4_steps_after_the_window_are_of_second_order() -> None:
    """On N(0.7, 0.5^2), whose ODE keeps (x - mean) / deviation: twice the steps, 1 / 2 of the error, or 1 / 3.5."""
    z = torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]

    def field(x: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * 0.25 + t**2
        return (t - (1 - t) * 0.25) / variance * (x - (1 - t) * 0.7) - 0.7

    def error(steps: int, tail: float | None) -> float:
        """From where a window ends, after a quarter of the steps."""
        chain = Chain(steps, 1.0, "linear", window=Window(steps // 4), tail=tail)
        segment = chain.at(0, 0).segments[-1]
        t = segment.times[0]
        start = (1 - t) * 0.7 + math.sqrt((1 - t) ** 2 * 0.25 + t**2) * z
        end = segment.solver(field, start, segment.times, lambda number: z)
        return (end - 0.7 - 0.5 * z).abs().max().item()

    second, first = ([error(steps, tail) for steps in (64, 128, 256, 512)] for tail in (1.0, None))
    assert [a / b for a, b in pairwise(first)] == pytest.approx([2, 2, 2], abs=0.1)
    assert [a / b for a, b in pairwise(second)] == pytest.approx([3.26, 3.41, 3.50], abs=0.01)  # 4, but for t -> 0
    assert second[0] < first[0] / 5


# P5: counts


COSTS: dict[str, tuple[float, float]] = {  # evaluations per sample: of the rollout, and in training (section 6)
    "ddpo": (50, 49),  # the last step has no noise here
    "flow_grpo": (10, 9),
    "flow_grpo_fast": (10, 3),
    "dance_grpo": (16, 9),
    "mix_grpo": (25, 4),
    "mix_grpo_flash": (11, 4),
    "tempflow_grpo": ((36 + 1080) / 216, 36 / 216),  # a prompt of four starts; children share their forward
    "g2rpo": ((8 + 12 * (92 + 40 + 25)) / 288, 8 / 288),
    "grpo_guard": (10, 9),
    "flow_dppo": (10, 3),
    "flash_grpo": (20, 1),
    "turningpoint_grpo": (55 / 10, 9 / 10),  # 10 + 9 + ... + 1, since a chain shares its states with its completions
    "branch_grpo": (203 / 16, 187 / 16),  # the last step is not random
}


@family
def test_p5_evaluations_are_those_of_the_paper(name: str) -> None:
    """A state that several segments leave from is asked for once, in the rollout and in training."""
    algorithm = ALGORITHMS[name]()
    sampled, trained = COSTS[name]
    assert evaluations(algorithm) == pytest.approx(sampled)
    size = max(4, algorithm.rollout.leaves)
    done = rollout(algorithm, size=size)
    counted = Counted()
    algorithm.loss(Models(counted, velocity, velocity), everything(algorithm, done))
    assert counted.rows / len(done) == pytest.approx(trained)


def test_p5_dance_grpo_as_mix_grpo_compares_with_it() -> None:
    chain = Chain(25, 3.0, "linear", "dance-sde", 0.3, share=0.585, shared_start=True)
    done = rollout(DanceGRPO(rollout=chain), size=4)
    assert evaluations(DanceGRPO(rollout=chain)) == 25
    assert done.steps is not None
    assert done.steps.per_root == 14


def test_p5_g2rpo_evaluates_each_state_once() -> None:
    """Per prompt: 8 on the trunk, 12 children at each of 8 places, and on two grids 92 + 48 times each, of which the
    first of both is shared (the paper's 16 and 96 more finish the trunk and repeat its states)."""
    algorithm = G2RPO(rollout=replace(G2RPO().rollout, strides=(1, 2)))
    assert evaluations(algorithm) * 192 == 8 + 12 * (92 + 48 - 8)
    assert evaluations(replace(algorithm, rollout=replace(algorithm.rollout, strides=(2,)))) * 96 == 8 + 12 * 48


def test_p5_thinned_grids_keep_the_first_step_and_end_at_zero() -> None:
    """grid[..k + 1] and then every other of grid[k + 2..], as far as a whole stride goes."""
    draw = G2RPO().rollout
    tree, times = replace(draw, strides=(2,)).at(0, 0), grid(16, 3.0, "linear").tolist()
    ways = [segment.times for segment in tree.segments if segment.leaf]
    assert ways[0] == tuple(times[n] for n in (1, 2, 4, 6, 8, 10, 12, 14, 16))
    assert ways[1] == tuple(times[n] for n in (2, 3, 5, 7, 9, 11, 13, 16))
    assert ways[7] == tuple(times[n] for n in (8, 9, 11, 13, 16))


def test_p5_tempflow_records() -> None:
    """(N - 1) K per start: six of each of nine steps, compared with each other."""
    done = rollout(TempFlowGRPO(), size=108)
    batch = everything(TempFlowGRPO(), done)
    assert done.steps is not None
    assert batch.z.shape[:2] == (2 * 2 * 9, 6)
    assert batch.step.bincount().tolist() == [4] * 9
    assert batch.advantage.mean(1).abs().max() < 1e-12
    assert batch.advantage.std(1, correction=0) == pytest.approx(torch.ones(36), abs=1e-2)


def test_p5_tempflow_weights() -> None:
    """Noise over its mean, 1 / 2.2522 on SD3.5's grid, where the code has 2.25; recomputed for any other."""
    batch = everything(TempFlowGRPO(), rollout(TempFlowGRPO()))
    each = batch.weight[:9].sum(1)  # of nine states with six children
    assert each.mean().item() == pytest.approx(1, abs=1e-12)
    assert (each / batch.sigma[:9]).tolist() == pytest.approx([2.2522] * 9, abs=5e-5)
    for draw in (Branches(10, 1.0, "linear"), Branches(6, noise=1.2, high=4), Branches(8, law="ddim", noise=0.5)):
        algorithm = TempFlowGRPO(rollout=draw)
        batch = everything(algorithm, rollout(algorithm))
        assert batch.weight.sum(1).mean().item() == pytest.approx(1, abs=1e-12)
        assert (batch.weight.sum(1) / batch.sigma).std() < 1e-12
