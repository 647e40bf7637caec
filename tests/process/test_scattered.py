"""Trajectories whose random step is drawn per prompt (Flash-GRPO)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from walks import Counted, drawn, random_steps, rollout

from flowward.algorithms import FlashGRPO, FlowGRPO
from flowward.learning.moves import RandomSteps
from flowward.process.plans import Chain
from flowward.process.rollout import Rollout
from flowward.process.scattered import Scattered
from flowward.process.windows import Window

DRAW = Chain(8, window=Window(1, "per-prompt"))


def steps_of(prompts: int, iteration: int = 0, draw: Chain = DRAW) -> torch.Tensor:
    """[prompts, samples, window]: numbers of the random steps."""
    return random_steps(drawn(draw.at(0, iteration), prompts, 3)).number.view(prompts, 3, -1)


@pytest.mark.parametrize("size", [1, 3])
def test_where_there_is_one_position_it_is_a_chain_to_the_bit(size: int) -> None:
    """Samples, states, velocities, noise and numbers."""
    low = 7 - size
    one, two = (
        drawn(Chain(8, window=Window(size, order, low=low)).at(0, 0), size=3)  # type: ignore[arg-type]
        for order in ("per-prompt", "frozen")
    )
    assert torch.equal(one.x0, two.x0)
    for name in ("x", "v", "z", "sample", "number"):
        assert torch.equal(getattr(random_steps(one), name), getattr(random_steps(two), name)), name
    assert torch.allclose(random_steps(one).table[low:], random_steps(two).table[low:])


def test_samples_of_a_prompt_share_their_step_and_prompts_do_not() -> None:
    """Every step of the range is drawn, about equally often."""
    found = steps_of(200)
    assert (found == found[:, :1]).all()
    counts = found[:, 0, 0].bincount(minlength=7)
    assert counts.sum() == 200 and (counts > 10).all() and len(counts) == 7
    wide = steps_of(50, draw=replace(DRAW, window=Window(2, "per-prompt", low=1, high=5)))
    assert (wide.diff(dim=2) == 1).all() and wide.min() == 1 and wide.max() == 4


def test_the_step_of_a_prompt_depends_on_seed_iteration_and_its_number_alone() -> None:
    every = steps_of(40)
    assert torch.equal(steps_of(5), every[:5])
    draw = DRAW.at(0, 0)
    assert isinstance(draw, Scattered)
    of = [[draw.of_prompt(("noise", seed, step, 3, 0)).start for step in range(30)] for seed in (0, 1)]
    assert of[0] != of[1] and len(set(of[0])) > 4
    assert [draw.of_prompt(("noise", 0, step, 3, 5)).start for step in range(30)] == of[0]
    torch.manual_seed(3)
    assert torch.equal(steps_of(40), every)


def test_a_sample_is_the_same_in_whichever_batch() -> None:
    together = drawn(DRAW.at(0, 0), prompts=4, size=3)
    apart = drawn(DRAW.at(0, 0), prompts=4, size=3, only=[7, 0, 10])
    assert torch.equal(apart.x0, together.x0[[7, 0, 10]])
    steps = random_steps(together)
    assert torch.equal(random_steps(apart).z, steps.z[[7, 0, 10]])
    parts = [drawn(DRAW.at(0, 0), 4, 3, only=range(start, start + 6)) for start in (0, 6)]
    made = Rollout.of(parts, drawn_condition(), torch.arange(4).repeat_interleave(3), DRAW.levels)
    assert torch.equal(made.x0, together.x0)
    assert made.steps is not None
    assert torch.equal(made.steps.x, steps.x) and torch.equal(made.steps.number, steps.number)
    assert torch.equal(made.steps.sample, steps.sample)


def drawn_condition() -> Any:
    return rollout(FlowGRPO(rollout=Chain(3)), prompts=4, size=3).condition


def test_all_samples_are_evaluated_together() -> None:
    """One batch per time: S evaluations per image, however many different steps there are."""
    counted = Counted()
    drawn(DRAW.at(0, 0), prompts=6, size=2, field=counted)
    assert counted.rows == 8 * 12
    assert counted.times == [t for t in torch.tensor(DRAW.times[:-1]).tolist() for _ in range(12)]


def test_children_of_a_prompt_may_share_their_start() -> None:
    found = random_steps(
        drawn(replace(DRAW, window=Window(1, "per-prompt", high=1), shared_start=True).at(0, 0), size=3)
    )
    assert torch.equal(found.x[:3], found.x[:1].expand(3, 2, 3))
    assert not torch.equal(found.x[0], found.x[3])


def test_what_does_not_go_with_it_is_refused() -> None:
    for change in ({"tail": 0.5}, {"share": 0.5}):
        with pytest.raises(ValueError, match="leave tail at none and share at 1"):
            replace(DRAW, **change)
    with pytest.raises(ValueError, match="a window of 8 steps does not fit into steps 0 to 6 of 8"):
        Chain(8, window=Window(8, "per-prompt"))
    with pytest.raises(ValueError, match=r"the step from 1 to 0\.9475 has no noise"):
        Chain(8, window=Window(1, "per-prompt"), noise=0.0)
    with pytest.raises(ValueError, match="by-step needs the same random steps for all prompts"):
        FlashGRPO(points=RandomSteps("pull", order="by-step"))
    assert isinstance(DRAW.at(0, 0), Scattered)


def test_a_weight_that_does_nothing_is_told_before_a_run() -> None:
    assert FlashGRPO().remarks(1) == []
    (alone,) = FlashGRPO(rollout=Chain(8, window=Window(1, "random"))).remarks(1)
    assert "points.weight pull is 1: use --algorithm.rollout.window.order per-prompt" in alone
    (other,) = FlashGRPO(ratio="cps", clip=1e-3).remarks(1)
    assert "equally large with ratio gaussian or sum, but not with cps" in other
