"""Trajectory trees; P1 to P6 are the numbers of section 8 of the notes on the reverse process (P3: test_windows)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from walks import SHAPE, Counted, drawn, everything, family, keys, loss, random_steps, rollout, same, velocity

from flowward import ALGORITHMS
from flowward.algorithms import (
    G2RPO,
    DanceGRPO,
    FlowGRPO,
    FlowGRPOFast,
    MixGRPO,
    MixGRPOFlash,
    TempFlowGRPO,
)
from flowward.credit import ZScore
from flowward.flow import grid
from flowward.laws import LAWS, FlowSDE
from flowward.models.policy import Condition, Models
from flowward.moves import RandomSteps
from flowward.plans import Branches, Chain, excess_noise
from flowward.rollout import Pairs, Rollout, Sampler
from flowward.streams import Noise
from flowward.trees import Cohorts, Segment, Tree
from flowward.windows import Window

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
    with pytest.raises(ValueError, match="trains on random steps, but samples of this kind have none"):
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


# P6: what is trained on


@family
def test_p6_no_step_without_noise_and_never_the_last(name: str) -> None:
    """In every iteration of a long run."""
    algorithm = ALGORITHMS[name]()
    for iteration in (*range(0, 700, 10), 10**6):
        tree = algorithm.rollout.at(0, iteration)
        t, s, _, sigma = tree.table[~tree.table[:, 0].isnan()].unbind(1)
        assert (sigma > 0).all()
        assert (s > 0).all()
        assert (t > s).all()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Chain(noise=0.0), "the step from 1 to 0.9601 has no noise, so no density to train on"),
        (lambda: Chain(law="ddim", noise=0.0), "has no noise"),
        (lambda: Branches(noise=0.0), "has no noise"),
        (lambda: Chain(window=Window(high=10)), "window reaches to step 9, but of 10 steps the last .* is number 8"),
        (lambda: Chain(window=Window(4, low=7)), "a window of 4 steps does not fit into steps 7 to 8"),
        (lambda: Chain(3, window=Window(4)), "a window of 4 steps does not fit"),
        (lambda: Branches(high=10), "branches of 1 random steps can start at steps 0 to 8 of 10, not at 0 to 9"),
        (lambda: Branches(low=9), "can start at steps 0 to 8 of 10, not at 9 to 8"),
        (lambda: Branches(high=9, length=2), "branches of 2 random steps can start at steps 0 to 7 of 10"),
        (lambda: Branches(low=-1), "not at -1 to 8"),
        (lambda: Branches(fanout=1), "needs 2 children and 1 step at least, not 1 and 1"),
        (lambda: Branches(length=0), "needs 2 children and 1 step at least, not 6 and 0"),
        (lambda: Branches(strides=()), "strides must be at least 1"),
        (lambda: Branches(strides=(1, 0)), "strides must be at least 1"),
        (lambda: Chain(share=0.0), r"share of steps to train on must lie in \(0, 1\], not 0.0"),
        (lambda: Chain(share=1.1), r"share of steps to train on must lie in \(0, 1\], not 1.1"),
        (lambda: Chain(tail=0.0), r"share of steps after the window must lie in \(0, 1\], not 0.0"),
        (lambda: Chain(tail=1.5), r"share of steps after the window must lie in \(0, 1\], not 1.5"),
        (lambda: Chain(0), "a sampler needs 1 to 1000 steps, not 0"),
        (lambda: Branches(0), "a sampler needs 1 to 1000 steps, not 0"),
        (lambda: Chain(1), "a window of 1 step does not fit"),
        (lambda: Chain(law="ddim", noise=1.5), "the noise of DDIM must lie in"),
        (lambda: Tree((Segment(-1, (1.0, 0.5), law=FlowSDE(0.7), leaf=True), Segment(0, (0.4, 0.0)))), "starts at 0.4"),
        (lambda: Tree((Segment(0, (1.0, 0.0)),)), "segment 0 comes before its parent, 0"),
        (
            lambda: Tree((Segment(-1, (1.0, 0.0), fanout=2),)),
            "children that follow the ODE from one state are the same",
        ),
    ],
)
def test_p6_what_cannot_be_is_refused_in_a_sentence(make: Callable[[], Any], says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        make()
    assert "\n" not in str(error.value)


def test_p6_a_step_that_branches_again_is_refused() -> None:
    """Its children would have no sample of their own."""
    law = FlowSDE(0.7)
    tree = Tree(
        (
            Segment(-1, (1.0, 0.8), 0, 2, law, branch=1),
            Segment(0, (0.8, 0.5), 1, 2, law, branch=2),
            Segment(1, (0.5, 0.0), 2, leaf=True),
        )
    )
    with pytest.raises(ValueError, match="may not branch again below"):
        drawn(tree, size=4)


# What else there is to a tree


def test_excess_noise_of_every_step() -> None:
    """Flow-GRPO's last trained step on SD3's grid leaves 27 times too much; CPS and DDIM as much as they should."""
    found = dict(excess_noise(FlowGRPO().rollout))
    assert list(found) == list(range(9))
    assert found[8] == pytest.approx(26.9, abs=0.05)
    assert max(found[number] for number in range(7)) < 1.1
    for law in ("ddim", "cps"):
        assert [level for _, level in excess_noise(Chain(law=law, noise=0.8))] == pytest.approx([1.0] * 9)


def test_excess_noise_is_told_before_a_run() -> None:
    """Of every step that may be random, in some iteration; with a warning above 1.2."""
    noise, warning = FlowGRPO().rollout.remarks()
    assert noise.startswith("noise after each random step, over what its level calls for: 0: 1.04, 1: 1.06, 2: 1.03, ")
    assert noise.endswith(", 6: 1.07, 7: 1.23, 8: 26.9")
    assert warning.startswith("steps 7, 8 leave more noise than later steps can take away")
    assert warning.endswith("keep late steps out of the random ones, or use --algorithm.rollout.law ddim or cps")
    early = Chain(window=Window(2, "random", high=5))
    assert early.remarks() == ["noise after each random step, over what its level calls for: 0: 1.04, 1: 1.06, 2: "
                               "1.03, 3: 1.02, 4: 1.03"]  # fmt: skip
    assert [number for number, _ in excess_noise(Branches(one=True, low=1, high=4, length=2))] == [1, 2, 3, 4]
    assert "step 8 leaves" in Branches(low=8).remarks()[1]
    assert Sampler().remarks() == Pairs().remarks() == []


@pytest.mark.parametrize("law", LAWS)
def test_every_law_goes_into_every_tree(law: Any) -> None:
    """Guard on a window with CPS, branches with DDIM, thinned ways with a constant g."""
    draws = (
        Chain(6, law=law, noise=0.5, window=Window(2, "random"), tail=0.5),
        Branches(6, law=law, noise=0.5, fanout=2, length=2, strides=(1, 2), cohorts="branch"),
    )
    for draw in draws:
        algorithm = FlowGRPOFast(
            rollout=draw, ratio="guard", clip=1e-6, beta=0.1, points=RandomSteps("per-time", "restandardised")
        )
        done = rollout(algorithm, size=4 * draw.leaves, iteration=5)
        assert loss(algorithm, everything(algorithm, done)).isfinite().all()
    assert get_args(Cohorts) == ("prompt", "branch", "root")


def test_one_place_is_drawn_for_every_iteration() -> None:
    """Evenly, and the same whatever was drawn before."""
    draw = FlowGRPOFast(
        rollout=Branches(one=True, high=6, fanout=9, noise=0.8, cohorts="prompt"), ratio="gaussian"
    ).rollout
    assert isinstance(draw, Branches)
    found = [draw.places(0, iteration)[0] for iteration in range(1200)]
    counts = torch.tensor(found).bincount(minlength=6)
    assert len(counts) == 6
    assert (counts - 200).abs().max() < 5 * math.sqrt(200)
    assert [draw.places(0, iteration)[0] for iteration in reversed(range(50))] == found[:50][::-1]
    assert [draw.places(1, iteration)[0] for iteration in range(50)] != found[:50]
