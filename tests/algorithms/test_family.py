"""Every algorithm in the real trainer: what it evaluates, where it starts, that it learns and can be resumed."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_runs import FEW as STEPS
from tiny_runs import REWARDED, UNDIFFERENTIATED, fitting, taught
from tiny_runs import few_steps as small
from torch import Tensor

from flowward import ALGORITHMS, models, prompts
from flowward.algorithms import AWM, DPO
from flowward.evaluation.evaluate import draw
from flowward.learning.points import Renoise, RenoisePairs
from flowward.learning.snapshots import Decay
from flowward.process.completions import CompletedChain
from flowward.process.policy import anchor_of
from flowward.process.rollout import Pairs, Sampler
from flowward.process.splits import Splits
from flowward.process.times import Times
from flowward.training.config import settings_type
from flowward.training.run import Run
from flowward.training.trainer import Trainer

TEXTS = ("a circle", "a red square", "two rings", "a cross above a ring")
IMAGES = 16
COSTS = {
    "mix_grpo_flash": 3.0,  # two steps of the window, and one for the rest
    "tempflow_grpo": (2 + 2 * (3 + 2)) / 4,  # a trunk of two steps, two children at each place
    "turningpoint_grpo": (4 + 3) / 2,  # the ODE alone, and a random step and the ODE
    "branch_grpo": (1 + 2 + 4 + 4) / 4,  # splits at the first two of four steps
    "g2rpo": (1 + 2 * (3 + 1)) / 4,  # and on the coarser grid only one more, since both start at the same state
}
"""Evaluations per image in the rollout, where they are not as many as steps."""

algorithms = pytest.mark.parametrize("name", UNDIFFERENTIATED)  # the others: test_differentiated.py
rewarded = pytest.mark.parametrize("name", REWARDED)
kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def bright(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.mean((1, 2, 3))


def trainer(tiny: str, algorithm: Any, rank: int | None = None, **changes: Any) -> Trainer:
    group = 2 if isinstance(algorithm.rollout, Pairs) else 4
    numbers = {"images_per_update": IMAGES, "group_size": group, "microbatch": 8, "learning_rate": 1e-3, "warmup": 0}
    numbers["microbatch"] = 2 if isinstance(algorithm.rollout, Splits) else 8
    policy, texts = models.load(fitting(tiny, algorithm), rank, "float32"), prompts.of("mine", TEXTS)
    teachers = taught(algorithm, policy, texts)
    return Trainer(algorithm, policy, bright, texts, Run(**{**numbers, **changes}), teachers=teachers)


def points_of(one: Trainer) -> int:
    texts = [TEXTS[i % 4] for i in range(one.run.groups)]
    rollout, images = one.sample(texts, 0)
    return len(one.algorithm.points(one.credit(rollout, bright(images, texts)[:, None], texts), ("points", 0, 0)))


def moved(one: Trainer) -> Trainer:
    """The policy is no longer what its copies are, as after an iteration: they cost evaluations of their own."""
    with torch.no_grad():
        for tensor in one.parameters:
            tensor.add_(1e-3)
    return one


@algorithms
@kinds
def test_every_network_evaluation_is_needed(tiny: str, name: str, rank: int | None) -> None:
    """At most S per image for the rollout; per point one with gradient, one without for each anchor not yet known."""
    one = moved(trainer(tiny, small(name), rank))
    counts: Counter[tuple[bool, str]] = Counter()
    points, original = points_of(one), one.policy.velocity

    def velocity(x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        v = original(x, t, condition, weights)
        counts[v.requires_grad, weights.split()[0]] += len(x)  # teachers have names of their own
        return v

    one.policy.velocity = velocity  # type: ignore[method-assign]
    one.step()
    expected = Counter({(True, "policy"): points})
    expected[False, one.algorithm.behaviour] += int(IMAGES * COSTS.get(name, STEPS))
    for anchor in one.algorithm.anchors:
        expected[False, anchor_of(anchor)[0]] += points
    assert counts == expected


@algorithms
def test_no_batch_is_larger_than_what_the_rollout_needs(tiny: str, name: str) -> None:
    """Neither images that are decoded nor anchors: a tree has many more leaves than go through the network at once."""
    algorithm = small(name)
    one = moved(
        trainer(tiny, algorithm, rollout_batch=8, microbatch=2 * (4 if name in ("dgpo", "crd", "dpo", "vgrpo") else 1))
    )
    asked, decoded, trained = list[int](), list[int](), list[int]()
    velocity, decode = one.policy.velocity, one.policy.decode

    def answered(x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        (trained if torch.is_grad_enabled() else asked).append(len(x))
        return velocity(x, t, condition, weights)

    def seen(x0: Tensor) -> Tensor:
        decoded.append(len(x0))
        return decode(x0)

    one.policy.velocity, one.policy.decode = answered, seen  # type: ignore[method-assign]
    one.sample([TEXTS[number % 4] for number in range(one.run.groups)], 0)
    rows = max(asked)
    assert max(decoded) == rows == one.block == 8 // algorithm.rollout.leaves * algorithm.rollout.breadth
    assert sum(decoded) == IMAGES
    one.step()
    assert max(asked) <= max(rows, *trained)


@pytest.mark.parametrize("name", [name for name in REWARDED if ALGORITHMS[name]().guidance != 1])
def test_a_guided_policy_is_trained_as_it_draws(tiny: str, name: str) -> None:
    """Its velocities, those of its anchors and gradients are those of both branches: everything twice."""
    algorithm = small(name)
    counts = []
    for guidance in (1.0, 4.5):
        one = trainer(tiny, replace(algorithm, rollout=replace(algorithm.rollout, guidance=guidance)))
        rows: Counter[bool] = Counter()
        original = one.policy.velocity

        def velocity(
            x: Tensor,
            t: Tensor,
            condition: Any,
            weights: str = "policy",
            rows: Counter[bool] = rows,
            original: Any = original,
        ) -> Tensor:
            v: Tensor = original(x, t, condition, weights)
            rows[v.requires_grad] += len(x)
            return v

        one.policy.velocity = velocity  # type: ignore[method-assign]
        metrics = one.step().metrics
        assert metrics["first_ratio_max"] < 1e-5
        counts.append(rows)
    assert counts[1] == Counter({key: 2 * value for key, value in counts[0].items()})


@algorithms
@pytest.mark.parametrize("preset", ["scenes", None])
def test_an_iteration_as_it_comes(tiny: str, name: str, preset: str | None) -> None:
    """With the settings of the table, and with the paper's steps, trees and guidance; two prompts."""
    algorithm = settings_type(name, preset)().algorithm if preset else ALGORITHMS[name]()
    leaves = algorithm.rollout.leaves
    size = 2 if isinstance(algorithm.rollout, Pairs) else max(4, leaves)
    size *= 2 if isinstance(algorithm.rollout, CompletedChain) else 1  # chains of a prompt are compared
    one = trainer(tiny, algorithm, images_per_update=2 * size, group_size=size, rollout_batch=size, microbatch=10**6)
    before = {key: tensor.clone() for key, tensor in one.policy.weights.tensors("policy").items()}
    metrics = one.step().metrics
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["gradient_norm"] > 0
    assert not all(torch.equal(before[key], now) for key, now in one.policy.weights.tensors("policy").items())


@pytest.mark.parametrize(("name", "cohorts"), [("flow_grpo", 4), ("g2rpo", 4 * 2), ("tempflow_grpo", 2 * 4 * 2)])
def test_rewards_are_compared_within_their_cohort(tiny: str, name: str, cohorts: int) -> None:
    """Of the prompt, of a grid of a branch of it, or of a branch of one of its starts: no advantage is left over."""
    one = trainer(tiny, small(name), images_per_update=32, group_size=8)
    rollout, images = one.sample(list(TEXTS), 0)
    done = one.credit(rollout, bright(images, [])[:, None] + torch.arange(32.0)[:, None], list(TEXTS))
    sums = torch.zeros(cohorts, dtype=torch.float64).index_add_(0, done.cohort, done.advantage)
    assert done.cohort.unique().tolist() == list(range(cohorts))
    assert sums.abs().max() < 1e-9
    assert (done.advantage != 0).all()


def test_a4_prompts_and_groups_are_a_function_of_seed_and_iteration(tiny: str) -> None:
    """Whatever the algorithm, the size of a rollout batch, or where a run was taken up; every group has K members."""

    def groups(name: str, start: int = 0, **changes: Any) -> list[tuple[list[str], Tensor]]:
        one = trainer(tiny, small(name), images_per_update=8, **changes)
        one.iteration = start
        found: list[tuple[list[str], Tensor]] = []
        original = one.graft

        def graft(rollout: Any, texts: list[str], index: int) -> Any:
            found.append((texts, rollout.group))
            return original(rollout, texts, index)

        one.graft = graft
        for _ in range(3 - start):
            one.step()
        return found

    expected = groups("flow_grpo")
    others = (groups("tempflow_grpo"), groups("flow_grpo", rollout_batch=4), groups("advantageflow"))
    for found in (*others, [*expected[:1], *groups("flow_grpo", start=1)]):
        assert [texts for texts, _ in found] == [texts for texts, _ in expected]
        assert all((group.bincount() == 4).all() and len(group.unique()) == 2 for _, group in found)


@pytest.mark.parametrize(
    ("name", "changes", "anchors"),
    [
        ("advantageflow", {"lam": 0.0}, {"old"}),
        ("flowawr", {"k_ref": 0.0}, {"old"}),
        ("diffusion_nft", {"k_ref": 0.0}, {"old"}),
        ("awm", {"k_ref": 0.0}, {"old"}),
        ("awm", {"k_old": 0.0}, {"reference"}),
        ("awm", {"k_old": 0.0, "k_ref": 0.0}, set()),
        ("awm", {"k_old": 0.0, "k_ref": 0.0, "behaviour": "old"}, {"old"}),
        ("fdfo", {}, set()),
        ("fdfo", {"k_ref": 0.1}, {"reference"}),
        ("crd", {"k_ref": 0.0}, {"old"}),
        ("dpo", {}, {"old"}),
        ("advantageflow", {"gamma": 0.0, "signed": True}, {"reference"}),
        ("advantageflow", {"gamma": 0.0, "signed": True, "lam": 0.0}, set()),
        ("ram", {}, {"reference"}),
        ("ram", {"residual": "old"}, {"old", "reference"}),
        ("rvm", {}, set()),
        ("rvm", {"beta": 0.1}, {"reference"}),
        ("vgrpo", {}, {"old"}),
        ("meanflow_advantage", {}, {"old", "old ahead", "old behind", "reference"}),
        ("meanflow_advantage", {"lam": 0.0}, {"old", "old ahead", "old behind"}),
        ("flow_grpo", {}, {"reference"}),
        ("flow_grpo", {"beta": 0.0}, set()),
        ("tempflow_grpo", {"beta": 0.0}, set()),
        ("opd", {}, {"teacher"}),
        ("opd", {"beta": 0.1}, {"teacher", "reference"}),
    ],
)
def test_a_term_without_weight_costs_nothing(tiny: str, name: str, changes: dict[str, Any], anchors: set[str]) -> None:
    algorithm = small(name, **changes)
    assert set(algorithm.anchors) == anchors
    assert trainer(tiny, algorithm).step().metrics["gradient_norm"] > 0


@rewarded
@kinds
def test_before_the_first_step_nothing_has_moved(tiny: str, name: str, rank: int | None) -> None:
    """forward_process.md, 15: policy, old and reference agree, so d = 0 and every ratio is 1."""
    one = trainer(tiny, small(name), rank)
    texts = [TEXTS[i % 4] for i in range(one.run.groups)]
    rollout, images = one.sample(texts, 0)
    rollout = one.credit(rollout, bright(images, texts)[:, None], texts)
    points = one.algorithm.points(rollout, ("points", 0, 0))
    for batch in one.batches(points, torch.arange(len(points))):
        with torch.no_grad():
            v = one.models.at("policy", batch)
        for anchor, known in batch.known.items():
            assert anchor_of(anchor)[1] or (v - known).abs().max() < 1e-4


@algorithms
@kinds
def test_two_halves_make_a_whole(tiny: str, name: str, rank: int | None) -> None:
    """All snapshots are in the state: two iterations, a fresh trainer, and one more are three, to the bit."""
    few = {"updates_per_iteration": 2, "images_per_update": 8}
    whole = trainer(tiny, small(name), rank, **few)
    for _ in range(2):
        whole.step()
    state = copy.deepcopy(whole.state_dict())
    second = trainer(tiny, small(name), rank, **few)
    second.load_state_dict(state)
    assert second.step().metrics == whole.step().metrics
    for weights in ("policy", "ema", *whole.algorithm.copies):
        ours, theirs = whole.policy.weights.tensors(weights), second.policy.weights.tensors(weights)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), weights


@algorithms
def test_batches_of_anchors_do_not_matter(tiny: str, name: str) -> None:
    """Velocities without gradient are evaluated in larger batches than the others; the size changes nothing."""
    found = []
    for size in (8, 32):
        one = trainer(tiny, small(name), rollout_batch=size)
        found.append([one.step().metrics["loss"] for _ in range(2)])
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-5)


@algorithms
def test_microbatches_do_not_matter(tiny: str, name: str) -> None:
    """Loss and gradient are means over the points of an update, however they are cut."""
    found = []
    for size in (4, 10**6):
        metrics = trainer(tiny, small(name), microbatch=size).step().metrics
        found.append([metrics["loss"], metrics["gradient_norm"]])
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)


@algorithms
def test_an_iteration_uses_every_point_once(tiny: str, name: str) -> None:
    """Over all its updates, units unbroken; only the first of them is by the weights that drew the samples."""
    one = trainer(tiny, small(name), updates_per_iteration=2)
    taken: list[Tensor] = []
    original, known = one.batches, set()

    def batches(points: Any, numbers: Tensor, fresh: bool = False, same: Sequence[str] = ()) -> Any:
        taken.append(numbers)
        known.add((len(taken), fresh))
        assert (numbers.view(-1, points.unit).diff(dim=1) == 1).all()
        return original(points, numbers, fresh, same)

    one.batches = batches  # type: ignore[method-assign]
    count = points_of(one)
    one.step()
    assert len(taken) == 2
    assert len(taken[0]) == len(taken[1])
    assert torch.cat(taken).sort().values.tolist() == list(range(count))
    assert known == {(1, one.algorithm.behaviour == "policy"), (2, False)}


RATES = {"fdfo": 6e-4, "dpo": 6e-4}


@rewarded
def test_the_reward_rises(tiny: str, name: str) -> None:
    """By four standard errors, on the same prompts and noise, within a budget that all share."""
    algorithm = small(name)
    policy = models.load(fitting(tiny, algorithm), None, "float32")
    group = 2 if isinstance(algorithm.rollout, Pairs) else 12
    micro = 42 if isinstance(algorithm.rollout, Splits) else 48
    run = Run(images_per_update=48, group_size=group, microbatch=micro, learning_rate=RATES.get(name, 1e-3), warmup=0)
    one = Trainer(algorithm, policy, bright, prompts.of("mine", TEXTS), run)
    texts = [TEXTS[k % 4] for k in range(96)]

    def measured() -> Tensor:
        return bright(draw(policy, texts, Sampler(STEPS), seed=1), texts)

    before = measured()
    for _ in range(12):
        one.step()
    after = measured()
    error = ((before.var() + after.var()) / len(texts)).sqrt()
    assert (after.mean() - before.mean()) / error > 4


def test_guided_rollouts_have_unguided_anchors(tiny: str) -> None:
    """VideoAWR's rule: guidance doubles the work of the rollout, and of nothing else."""
    algorithm = small("flowawr")
    algorithm = replace(
        algorithm, rollout=replace(algorithm.rollout, guidance=4.5), points=Renoise(1, Times("levels", last=2))
    )
    one = moved(trainer(tiny, algorithm))
    sizes: list[int] = []
    original = one.policy.velocity

    def velocity(x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        sizes.append(len(x))
        return original(x, t, condition, weights)

    one.policy.velocity = velocity  # type: ignore[method-assign]
    one.step()
    assert sum(sizes) == 2 * IMAGES * STEPS + 3 * IMAGES


def test_off_policy_matching_corrects_for_the_older_weights(tiny: str) -> None:
    """AWM that samples from its running average weighs by exp(log p - log p_old), on policy by 1."""
    for behaviour in ("policy", "old"):
        one = trainer(tiny, small("awm", behaviour=behaviour, clip=0.2))
        for _ in range(2):
            metrics = one.step().metrics
        assert metrics["gradient_norm"] > 0
    assert isinstance(one.algorithm, AWM)


def test_a_copy_is_renewed_every_so_many_steps(tiny: str) -> None:
    one = trainer(tiny, small("dpo", old=Decay(0.0, every=4)), updates_per_iteration=2)
    key = next(iter(one.policy.weights.tensors("policy")))
    before = one.policy.weights.tensors("old")[key].clone()
    one.step()
    assert torch.equal(one.policy.weights.tensors("old")[key], before)
    one.step()
    assert torch.equal(one.policy.weights.tensors("old")[key], one.policy.weights.tensors("policy")[key])


def test_a_copy_that_iterations_never_meet_is_refused(tiny: str) -> None:
    with pytest.raises(ValueError, match="'old' is updated every 40 optimiser steps, which is not a multiple of"):
        trainer(tiny, DPO(points=RenoisePairs(4)), updates_per_iteration=3)


def test_compared_points_are_not_torn_apart(tiny: str) -> None:
    with pytest.raises(ValueError, match="each other, so --microbatch must be a multiple of 4, not 2"):
        trainer(tiny, small("dgpo"), microbatch=2)


def test_a_prompt_with_one_chain_has_nothing_to_compare(tiny: str) -> None:
    """Its steps would have the advantage 0 whatever the rewards are."""
    with pytest.raises(ValueError, match=r"with --group-size 2 no step of a prompt .*: use --group-size 4 or more, in"):
        trainer(tiny, small("turningpoint_grpo"), group_size=2)
