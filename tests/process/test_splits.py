"""Trees that split again and again (BranchGRPO), and chains of which every state is completed (TurningPoint-GRPO)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from walks import Counted, drawn, random_steps, same, velocity

from flowward.process.completions import CompletedChain
from flowward.process.laws import LAWS
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Condition
from flowward.process.splits import Splits
from flowward.process.windows import Window

TREE = Splits(6, splits=(0, 2, 3))


def path(tree: Any, leaf: int) -> torch.Tensor:
    """A leaf of the first prompt's tree, from the noise recorded along its way and Euler's last step."""
    steps, times = random_steps(drawn(tree.at(0, 0), prompts=1)), tree.times
    law, x = LAWS[tree.law](tree.noise), steps.x[:1]
    for number, (t, s) in enumerate(pairwise(times)):
        v = velocity(x, torch.full((1,), t), Condition({"id": torch.zeros(1)}))
        rows = (steps.number == number).nonzero().flatten()
        found = (steps.sample[rows] == leaf).any(2).nonzero()
        if len(found) == 0:
            x = x + (s - t) * v
            continue
        state, child = found[0].tolist()
        assert torch.equal(steps.x[rows[state]][None], x)
        p, q, sigma = law.coefficients(t, s, times[1])
        x = p * x + q * steps.v[rows[state]][None] + sigma * steps.z[rows[state], child][None]
    return x


@pytest.mark.parametrize("tree", [TREE, replace(TREE, between="ode"), replace(TREE, fanout=3, splits=(0, 4))])
def test_a_leaf_is_what_becomes_of_its_ancestors(tree: Splits) -> None:
    """`sample` names all leaves under a step: following those of one leaf leads to it, to the bit."""
    found = drawn(tree.at(0, 0), prompts=1)
    assert len(found.x0) == tree.leaves == len(found.x0.unique(dim=0))
    for leaf in range(tree.leaves):
        assert torch.equal(path(tree, leaf)[0], found.x0[leaf])


def test_every_step_has_the_leaves_under_it() -> None:
    """Two of four leaves each after the first of two splits, one after the second, none twice."""
    steps = random_steps(drawn(Splits(4, splits=(0, 2)).at(0, 0), prompts=2))
    assert steps.number.tolist() == [0, 1, 1, 2, 2] * 2
    one = [[[0, 1], [2, 3]], [[0, 1], [-1, -1]], [[2, 3], [-1, -1]], [[0, -1], [1, -1]], [[2, -1], [3, -1]]]
    assert steps.sample[:5].tolist() == one
    assert steps.sample[5:].tolist() == torch.where(torch.tensor(one) < 0, -1, torch.tensor(one) + 4).tolist()


def evaluations(draw: Any) -> int:
    counted, tree = Counted(), draw.at(0, 0)
    drawn(tree, prompts=1, size=tree.leaves, field=counted)
    return counted.rows


def test_states_are_evaluated_once() -> None:
    """BranchGRPO on FLUX: 1 + 3 x 2 + 3 x 4 + 3 x 8 + 10 x 16 of 20 steps; 219 nodes, the paper's 13.7 per image."""
    draw = Splits(20, 3.0, "linear")
    assert evaluations(draw) == 203
    tree = draw.at(0, 0)
    nodes = 1 + sum(rows * (len(each.times) - 1) for rows, each in zip(tree.rows, tree.segments, strict=True))
    assert nodes == 219 and nodes / 16 == pytest.approx(13.7, abs=0.02)
    assert len(random_steps(drawn(tree, prompts=1)).x) == 203 - 16
    assert evaluations(replace(draw, between="ode")) == 203  # only fewer of them are random
    assert len(random_steps(drawn(replace(draw, between="ode").at(0, 0), prompts=1)).x) == 1 + 2 + 4 + 8


def test_depth_pruning_slides_to_the_last_split_and_stays() -> None:
    """Samples do not change, and the steps that are left are as before; the number of points stays."""
    draw, whole = (Splits(10, splits=(0, 2), pruned=pruned, every=5) for pruned in (3, 0))
    assert [list(draw.untrained(i)) for i in (0, 4, 5, 14, 15, 500)] == [
        [6, 7, 8], [6, 7, 8], [5, 6, 7], [4, 5, 6], [3, 4, 5], [3, 4, 5]
    ]  # fmt: skip
    every = random_steps(drawn(whole.at(0, 0)))
    for iteration in (0, 5, 100):
        found = drawn(draw.at(0, iteration))
        steps = random_steps(found)
        assert torch.equal(found.x0, drawn(whole.at(0, 0)).x0)
        kept = ~torch.isin(every.number, torch.tensor(list(draw.untrained(iteration))))
        assert same(steps, every[kept.nonzero().flatten()])
        assert steps.per_root == every.per_root - 3 * 4
        assert not torch.isin(steps.table[:, 0].isnan().logical_not().nonzero(), every.number[~kept]).any()


def test_one_split_is_a_branch_to_the_bit() -> None:
    """T37, the samples: TempFlow-GRPO's tree with one place; the credit is in test_step_rewards."""
    one = drawn(Splits(8, law="flow-sde", noise=0.7, splits=(3,), fanout=4, between="ode").at(0, 0), size=8)
    two = drawn(Branches(8, low=3, high=4, fanout=4).at(0, 0), size=8)
    assert torch.equal(one.x0, two.x0)
    assert same(random_steps(one), random_steps(two))


# Completions


CHAIN = CompletedChain(6, window=Window(3, "frozen", low=1))


def test_completions_are_the_chain_and_its_states() -> None:
    """The first follows the ODE, the last is the chain's own sample; sample j leaves the chain after j random steps."""
    found, alone = (drawn(each.at(0, 0), prompts=2) for each in (CHAIN, Chain(6, window=CHAIN.window)))
    assert CHAIN.leaves == 4
    ours, theirs = random_steps(found), random_steps(alone)
    for name in ("x", "v", "z", "number"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)), name
    assert torch.equal(found.x0.view(2, 4, 2, 3)[:, -1], alone.x0)
    condition = Condition({"id": torch.tensor([0.0, 1.0])})
    for after in range(4):
        start = 1 + after
        x = theirs.x.view(2, 3, 2, 3)[:, after] if after < 3 else None
        if x is None:
            continue
        for t, s in pairwise(CHAIN.times[start:]):
            x = x + (s - t) * velocity(x, torch.full((2,), t), condition)
        assert torch.equal(found.x0.view(2, 4, 2, 3)[:, after], x)
    assert ours.sample[:3].tolist() == [[[1, 2, 3]], [[2, 3, -1]], [[3, -1, -1]]]


def test_completions_share_states_with_the_chain() -> None:
    """FLUX: 6 + 5 + 4 + 3 + 2 + 1 evaluations and 6 images for 5 random steps; 27 if nothing were shared."""
    draw = CompletedChain(6)
    assert (evaluations(draw), draw.leaves) == (21, 6)
    assert evaluations(CHAIN) == 1 + 5 + 4 + 3 + 2
    unshared = 6 + 6 + sum(6 - j for j in range(1, 6))  # the chain, the ODE, and the rest of each
    assert unshared == 27
    assert draw.remarks()[0] == "every chain of 5 random steps is completed 6 times: 6 images per chain are scored"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Splits(splits=()), r"splits must be one or more steps in rising order, not \(\)"),
        (lambda: Splits(splits=(3, 3)), "rising order"),
        (lambda: Splits(splits=(0, 9)), "a split at step 9 lies outside the grid: with 10 steps, .* steps 0 to 8"),
        (lambda: Splits(splits=(-1, 2)), "a split at step -1 lies outside the grid"),
        (lambda: Splits(20, fanout=1), "a split needs fanout >= 2, not 1"),
        (lambda: Splits(20, pruned=10), "9 random steps follow the last split at step 9, so 10 of them cannot be left"),
        (lambda: Splits(20, pruned=1, between="ode"), "0 random steps follow the last split"),
        (lambda: Splits(20, pruned=-1), "pruned"),
        (lambda: Splits(20, every=0), "every"),
        (lambda: Splits(20, law="sde"), "unknown noise schedule of random steps 'sde'"),  # type: ignore[arg-type]
        (lambda: Splits(20, noise=0.0), "has no noise, so no density to train on"),
        (lambda: Splits(20, between="sde"), "unknown kind of step between splits 'sde'"),  # type: ignore[arg-type]
        (lambda: Splits(20, cohorts="branch"), "unknown kind of cohort 'branch'"),  # type: ignore[arg-type]
        (lambda: CompletedChain(tail=0.5), "leave tail at none, share at 1"),
        (lambda: CompletedChain(share=0.5), "leave tail at none, share at 1"),
        (lambda: CompletedChain(window=Window(1, "per-prompt")), "anything but per-prompt"),
        (lambda: CompletedChain(4, window=Window(4)), "a window of 4 steps does not fit into steps 0 to 2 of 4"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)
