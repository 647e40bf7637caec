"""Trajectory trees; P1 and P2 are numbers of section 8 of the notes on the reverse process.

P3 is in test_windows, P4 and P5 in test_tree_costs, P6 in test_plans.
"""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from walks import SHAPE, drawn, everything, keys, loss, random_steps, rollout, same, velocity

from flowward.algorithms import DanceGRPO, FlowGRPO, MixGRPO
from flowward.learning.credit import ZScore
from flowward.learning.moves import RandomSteps
from flowward.process.flow import grid
from flowward.process.laws import LAWS, FlowSDE
from flowward.process.noise import Noise
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Condition
from flowward.process.rollout import Rollout, Sampler
from flowward.process.trees import Cohorts, Segment, Tree
from flowward.process.windows import Window

# P1: windows


@pytest.mark.parametrize("order", ["progressive", "linear", "exponential", "random", "frozen"])
@pytest.mark.parametrize("law", LAWS)
def test_p1_a_window_of_all_steps_is_flow_grpo(order: Any, law: Any) -> None:
    """Samples, records and loss of MixGRPO are those of Flow-GRPO, to the bit."""
    chain = Chain(6, law=law, noise=0.5)
    flow = FlowGRPO(rollout=chain, beta=0.1)
    mix = MixGRPO(
        rollout=replace(chain, window=Window(5, order)), credit=ZScore("pooled"), beta=0.1, divergence="per-noise"
    )
    one, two = rollout(flow, size=4), rollout(mix, size=4, iteration=99)
    assert torch.equal(one.x0, two.x0)
    assert one.steps is not None
    assert two.steps is not None
    assert same(one.steps, two.steps)
    assert torch.equal(one.steps.table, two.steps.table)
    first, second = everything(flow, one), everything(mix, two)
    for field in fields(first):
        if isinstance(getattr(first, field.name), Tensor):
            assert torch.equal(getattr(first, field.name), getattr(second, field.name)), field.name
    assert torch.equal(loss(flow, first), loss(mix, second))


@pytest.mark.parametrize(("start", "size"), [(0, 1), (3, 2), (8, 1)])
def test_p1_outside_its_window_a_chain_follows_the_ode_to_the_bit(start: int, size: int) -> None:
    """Euler's method before it, and from where it ends."""
    chain = Chain(window=Window(size, "frozen", low=start))
    found, times = drawn(chain.at(0, 0), size=3), chain.times
    steps, condition = random_steps(found), Condition({"id": torch.tensor([0.0] * 3 + [1.0] * 3)})
    x = Noise(SHAPE, tuple(keys(2, 3))).start()
    for t, s in pairwise(times[: start + 1]):
        x = x + (s - t) * velocity(x, torch.full((6,), t), condition)
    assert torch.equal(steps.x[::size], x)
    for number in range(start, start + size):
        p, q, sigma = FlowSDE(0.7).coefficients(times[number], times[number + 1], times[1])
        assert torch.equal(steps.x[number - start :: size], x)
        x = p * x + q * steps.v[number - start :: size] + sigma * steps.z[number - start :: size, 0]
    for t, s in pairwise(times[start + size :]):
        x = x + (s - t) * velocity(x, torch.full((6,), t), condition)
    assert torch.equal(found.x0, x)


def test_p1_without_random_steps_a_tree_is_the_ode() -> None:
    """To the bit, with nothing to train on; a window without steps is refused."""
    times = tuple(grid(10).tolist())
    found = drawn(Tree((Segment(-1, times, leaf=True),)), size=4)
    assert torch.equal(found.x0, drawn(Sampler(10, 3.0, "sd3"), size=4).x0)
    assert found.steps is None
    with pytest.raises(ValueError, match="size must be a positive number"):
        Window(0)
    done = rollout(FlowGRPO(), size=4)
    with pytest.raises(ValueError, match="trains on random steps, but this rollout has no random steps"):
        RandomSteps()(replace(done, steps=None), ("points",))


def test_p1_a_narrower_window_changes_nothing_before_it_ends() -> None:
    """The noise of a step is that of its number, whatever other steps are random."""
    wide, narrow = (random_steps(drawn(Chain(window=w).at(0, 0), size=3)) for w in (Window(), Window(2)))
    assert torch.equal(narrow.z, wide.z[wide.number < 2])
    assert torch.equal(narrow.x, wide.x[wide.number < 2])


# P2: branches


BUSH = Branches(5, fanout=3)


def test_p2_branches_share_their_trunk_to_the_bit() -> None:
    """Each leaves from the state that Euler's method reaches, with the velocity there; its children differ."""
    found = drawn(BUSH.at(0, 0), size=BUSH.leaves)
    steps, times = random_steps(found), grid(5).tolist()
    condition = Condition({"id": torch.tensor([0.0, 1.0])})
    x = Noise(SHAPE, tuple(keys(2, 1))).start()
    assert steps.number.tolist() == [0, 1, 2, 3] * 2
    for number, (t, s) in enumerate(pairwise(times[:-1])):
        v = velocity(x, torch.full((2,), t), condition)
        assert torch.equal(steps.x[number::4], x)
        assert torch.equal(steps.v[number::4], v)
        x = x + (s - t) * v
    assert len(steps.z.unique()) == 2 * 4 * 3 * 6  # of roots, branches, children, elements: no number twice
    assert len(found.x0.unique(dim=0)) == 2 * 4 * 3


def test_p2_a_sample_is_what_becomes_of_its_child() -> None:
    """One random step with the noise that is kept, then Euler's method: `sample` numbers the right one."""
    found = drawn(BUSH.at(0, 0), size=BUSH.leaves)
    steps, times = random_steps(found), grid(5).tolist()
    for row in range(8):
        number = int(steps.number[row])
        p, q, sigma = FlowSDE(0.7).coefficients(times[number], times[number + 1], times[1])
        x = p * steps.x[row] + q * steps.v[row] + sigma * steps.z[row]
        condition = Condition({"id": torch.full((3,), float(row // 4))})
        for t, s in pairwise(times[number + 1 :]):
            x = x + (s - t) * velocity(x, torch.full((3,), t), condition)
        assert torch.equal(found.x0[steps.sample[row, :, 0]], x)
    assert steps.sample.flatten().tolist() == list(range(2 * 12))


def children(tree: Tree) -> list[Tensor]:
    """Noise and samples of the children at each place of each prompt."""
    found = drawn(tree)
    steps = random_steps(found)
    return [torch.cat([z, found.x0[sample[:, 0]]], 1) for z, sample in zip(steps.z, steps.sample, strict=True)]


def test_p2_a_child_is_the_same_whichever_other_branches_there_are() -> None:
    """Fewer places, one place, fewer children, further grids: nothing else moves."""
    every = children(BUSH.at(0, 0))

    def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
        return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    for place in range(4):
        assert equal(children(replace(BUSH, low=place, high=place + 1).at(0, 0)), every[place::4])
    one = replace(BUSH, one=True)
    for iteration in range(8):
        (place,) = one.places(0, iteration)
        assert equal(children(one.at(0, iteration)), every[place::4])
    assert equal(children(replace(BUSH, fanout=2).at(0, 0)), [each[:2] for each in every])
    assert equal(children(replace(BUSH, strides=(1, 2)).at(0, 0)), every)


@pytest.mark.parametrize("draw", [BUSH, Chain(5, share=0.5), Branches(5, fanout=2, length=2, strides=(1, 2))])
@pytest.mark.parametrize("shared", [False, True])
def test_p2_a_root_is_the_same_in_whichever_batch(draw: Any, shared: bool) -> None:
    """Alone, in another order, among other prompts; and the generator of torch is left alone."""
    tree = replace(draw, shared_start=shared).at(0, 3)
    size = 2 * tree.leaves
    state = torch.get_rng_state()
    together = drawn(tree, prompts=3, size=size)
    assert torch.equal(torch.get_rng_state(), state)
    steps, rows = random_steps(together), random_steps(together).per_root
    order = [5, 0, 3, 2]
    numbers = [root * tree.leaves + leaf for root in order for leaf in range(tree.leaves)]
    torch.manual_seed(1)
    apart = drawn(tree, prompts=3, size=size, only=numbers)
    assert torch.equal(apart.x0, together.x0[numbers])
    for place, root in enumerate(order):
        mine, theirs = slice(place * rows, (place + 1) * rows), slice(root * rows, (root + 1) * rows)
        for name in ("x", "v", "z", "number"):
            assert torch.equal(getattr(random_steps(apart), name)[mine], getattr(steps, name)[theirs]), name
        shift = torch.where(steps.sample[theirs] < 0, 0, (place - root) * tree.leaves)
        assert torch.equal(random_steps(apart).sample[mine], steps.sample[theirs] + shift)


def test_p2_parts_of_a_rollout_make_the_whole() -> None:
    """Chunks put together are the rollout at once: records, samples and cohorts."""
    tree, group = BUSH.at(0, 0), torch.arange(4).repeat_interleave(BUSH.leaves)
    condition = Condition({"id": torch.arange(4.0)})
    whole = Rollout.of([drawn(tree, 4)], condition, group, BUSH.levels)
    parts = [drawn(tree, 4, only=range(start, start + 12)) for start in (0, 12, 24, 36)]
    made = Rollout.of(parts, condition, group, BUSH.levels)
    assert whole.steps is not None
    assert made.steps is not None
    assert same(whole.steps, made.steps)
    assert torch.equal(whole.x0, made.x0)
    assert torch.equal(whole.cohort, made.cohort)


def test_p2_a_longer_branch_goes_on_alone() -> None:
    """Two random steps: the second state of every child is its own, and keeps no room for others."""
    tree = Branches(5, low=1, high=2, fanout=3, length=2).at(0, 0)
    found = drawn(tree, prompts=1)
    steps, times = random_steps(found), grid(5).tolist()
    assert steps.number.tolist() == [1, 2, 2, 2]
    assert steps.sample[:, :, 0].tolist() == [[0, 1, 2], [0, -1, -1], [1, -1, -1], [2, -1, -1]]
    p, q, sigma = FlowSDE(0.7).coefficients(times[1], times[2], times[1])
    assert torch.equal(steps.x[1:], p * steps.x[0] + q * steps.v[0] + sigma * steps.z[0])
    assert (steps.z[1:, 1:] == 0).all()


def test_p2_noise_depends_on_all_that_names_it() -> None:
    """Run, iteration, prompt, root, branch, child and step."""
    shape = (1000,)

    def z(key: tuple[str | int, ...] = ("noise", 0, 0, 0, 0), name: int = 0, child: int = 0, step: int = 0) -> Tensor:
        return Noise(shape, (key,)).branch(name, child + 1, step)[child]

    others = [z(("noise", *(int(place == k) for place in range(4)))) for k in range(4)]
    others += [z(name=1), z(child=1), z(step=1), Noise(shape, (("noise", 0, 0, 0, 0),)).start()[0]]
    others += [Noise(shape, (("noise", 0, 0, 0, 0),)).step(0)[0]]
    everything = torch.stack([z(), *others])
    assert torch.corrcoef(everything).fill_diagonal_(0).abs().max() < 0.15  # five standard errors


def test_children_of_a_prompt_may_share_their_start() -> None:
    apart, together = (drawn(Chain(4, shared_start=shared).at(0, 0), size=3) for shared in (False, True))
    first = random_steps(together).x[::3]
    assert torch.equal(first[:3], first[:1].expand(3, *SHAPE))
    assert not torch.equal(first[0], first[3])  # another prompt
    assert len(random_steps(apart).x[::3].unique(dim=0)) == 6
    assert len(together.x0.unique(dim=0)) == 6


# Shares and cohorts


def test_a_share_of_the_steps_is_drawn_for_each_root() -> None:
    """DanceGRPO's 9 of 15: another choice for every sample, in order."""
    chain = DanceGRPO().rollout
    all_of_them = random_steps(drawn(replace(chain, share=1.0).at(0, 0), size=12))
    steps = random_steps(drawn(chain.at(0, 0), size=12))
    assert steps.per_root == 9
    chosen = steps.number.view(24, 9)
    assert (chosen.diff(dim=1) > 0).all()
    assert len(chosen.unique(dim=0)) > 20
    assert chosen.unique().tolist() == list(range(15))
    rows = (torch.arange(24)[:, None] * 15 + chosen).flatten()
    for name in ("x", "v", "z", "sample", "number"):
        assert torch.equal(getattr(steps, name), getattr(all_of_them, name)[rows])


@pytest.mark.parametrize(
    ("cohorts", "size", "count"), [("prompt", 2 * 2 * 3 * 2, 2), ("branch", 2 * 3, 2 * 4), ("root", 3, 2 * 2 * 4)]
)
def test_samples_are_compared_with_those_of_their_kind(cohorts: Cohorts, size: int, count: int) -> None:
    """Two prompts, two roots each, two branches of three children, two grids (which are never compared)."""
    draw = Branches(5, low=1, high=3, fanout=3, strides=(1, 2), cohorts=cohorts)
    assert draw.leaves == 12
    found = drawn(draw.at(0, 0), size=24)
    group = torch.arange(2).repeat_interleave(24)
    made = Rollout.of([found], Condition({"id": torch.arange(2.0)}), group, draw.levels)
    assert made.cohort.unique().tolist() == list(range(count))
    assert (made.cohort.bincount() == size).all()
    for cohort in range(count):
        mine = (made.cohort == cohort).nonzero().flatten()
        assert len(group[mine].unique()) == 1
        if cohorts == "root":
            assert mine.tolist() == list(range(int(mine[0]), int(mine[0]) + 3))
        if cohorts != "prompt":
            places = (mine % 12) // 3  # leaves of a root are ordered by branch, then grid
            assert len(places.unique()) == 1


def test_samples_that_do_not_branch_are_compared_within_their_prompt() -> None:
    made = rollout(MixGRPO(), prompts=3, size=4)
    assert torch.equal(made.cohort, made.group)


def test_roots_are_numbered_within_their_prompt() -> None:
    """So where a root starts does not depend on how many samples come of each."""
    wide, narrow = (
        Noise((3,), tuple(("noise", 0, 7, prompt, sample) for prompt in range(2) for sample in range(2 * leaves)))
        for leaves in (6, 2)
    )
    assert [key[-2:] for key in wide.roots(6).keys] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert torch.equal(wide.roots(6).start(), narrow.roots(2).start())
