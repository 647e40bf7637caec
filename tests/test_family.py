"""Every algorithm in the real trainer: what it evaluates, where it starts, that it learns and can be resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import ALGORITHMS, models, prompts
from flowward.algorithms import AWM, DPO
from flowward.evaluate import draw
from flowward.points import Renoise, RenoiseGroups, RenoisePairs
from flowward.rollout import Pairs, Sampler
from flowward.snapshots import Decay
from flowward.times import Times
from flowward.trainer import Run, Trainer

TEXTS = ("a circle", "a red square", "two rings", "a cross above a ring")
STEPS = 4
IMAGES = 16

algorithms = pytest.mark.parametrize("name", ALGORITHMS)
kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def bright(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.mean((1, 2, 3))


def small(name: str, **changes: Any) -> Any:
    """The algorithm with few steps and points."""
    algorithm = ALGORITHMS[name]()
    points = {
        Renoise: Renoise(2),
        RenoiseGroups: RenoiseGroups(2),
        RenoisePairs: RenoisePairs(4),
    }.get(type(algorithm.points), algorithm.points)
    return replace(algorithm, rollout=replace(algorithm.rollout, steps=STEPS), points=points, **changes)


def trainer(tiny: str, algorithm: Any, rank: int | None = None, **changes: Any) -> Trainer:
    group = 2 if isinstance(algorithm.rollout, Pairs) else 4
    numbers = {"images_per_update": IMAGES, "group_size": group, "microbatch": 8, "learning_rate": 1e-3, "warmup": 0}
    policy = models.load(tiny, rank, "float32")
    return Trainer(algorithm, policy, bright, prompts.of("mine", TEXTS), Run(**{**numbers, **changes}))


def points_of(one: Trainer) -> int:
    texts = [TEXTS[i % 4] for i in range(one.run.groups)]
    rollout, images = one.sample(texts, 0)
    return len(one.algorithm.points(one.credit(rollout, bright(images, texts)), ("points", 0, 0)))


@algorithms
@kinds
def test_every_network_evaluation_is_needed(tiny: str, name: str, rank: int | None) -> None:
    """S per image for the rollout; per point one with gradient, and one without for each anchor not yet known."""
    one = trainer(tiny, small(name), rank)
    counts: Counter[tuple[bool, str]] = Counter()
    points, original = points_of(one), one.policy.velocity

    def velocity(x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        v = original(x, t, condition, weights)
        counts[v.requires_grad, weights] += len(x)
        return v

    one.policy.velocity = velocity  # type: ignore[method-assign]
    one.step()
    expected = Counter({(True, "policy"): points})
    expected[False, one.algorithm.behaviour] += IMAGES * STEPS
    for anchor in one.algorithm.anchors:
        expected[False, anchor] += points
    assert counts == expected


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
    ],
)
def test_a_term_without_weight_costs_nothing(tiny: str, name: str, changes: dict[str, Any], anchors: set[str]) -> None:
    algorithm = small(name, **changes)
    assert set(algorithm.anchors) == anchors
    assert trainer(tiny, algorithm).step().metrics["gradient_norm"] > 0


@algorithms
@kinds
def test_before_the_first_step_nothing_has_moved(tiny: str, name: str, rank: int | None) -> None:
    """forward_process.md, 15: policy, old and reference agree, so d = 0 and every ratio is 1."""
    one = trainer(tiny, small(name), rank)
    texts = [TEXTS[i % 4] for i in range(one.run.groups)]
    rollout, images = one.sample(texts, 0)
    rollout = one.credit(rollout, bright(images, texts))
    points = one.algorithm.points(rollout, ("points", 0, 0))
    for batch in one.batches(points, torch.arange(len(points))):
        with torch.no_grad():
            v = one.models.at("policy", batch)
        for known in batch.known.values():
            assert (v - known).abs().max() < 1e-4


@algorithms
@kinds
def test_two_halves_make_a_whole(tiny: str, name: str, rank: int | None) -> None:
    """All snapshots are in the state: N iterations, a fresh trainer, N more are 2 N, to the bit."""
    whole = trainer(tiny, small(name), rank, updates_per_iteration=2)
    lines = [whole.step().metrics for _ in range(4)]
    first = trainer(tiny, small(name), rank, updates_per_iteration=2)
    halves = [first.step().metrics for _ in range(2)]
    state = {k: v for k, v in first.state_dict().items()}
    state["weights"] = {n: {k: t.detach().clone() for k, t in w.items()} for n, w in state["weights"].items()}
    second = trainer(tiny, small(name), rank, updates_per_iteration=2)
    second.load_state_dict(state)
    halves += [second.step().metrics for _ in range(2)]
    assert halves == lines
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


RATES = {"fdfo": 3e-4, "dpo": 3e-4}


@algorithms
def test_the_reward_rises(tiny: str, name: str) -> None:
    """By four standard errors, on the same prompts and noise, within a budget that all share."""
    policy = models.load(tiny, None, "float32")
    algorithm = small(name)
    group = 2 if isinstance(algorithm.rollout, Pairs) else 12
    run = Run(images_per_update=48, group_size=group, microbatch=48, learning_rate=RATES.get(name, 1e-3), warmup=0)
    one = Trainer(algorithm, policy, bright, prompts.of("mine", TEXTS), run)
    texts = [TEXTS[k % 4] for k in range(96)]

    def measured() -> Tensor:
        return bright(draw(policy, texts, Sampler(STEPS), seed=1), texts)

    before = measured()
    for _ in range(20):
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
    one = trainer(tiny, algorithm)
    sizes: list[int] = []
    original = one.policy.velocity

    def velocity(x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        sizes.append(len(x))
        return original(x, t, condition, weights)

    one.policy.velocity = velocity  # type: ignore[method-assign]
    one.step()
    assert sum(sizes) == 2 * IMAGES * STEPS + 3 * IMAGES


def test_guidance_is_a_line_through_two_velocities(tiny: str) -> None:
    policy = models.load(tiny, None, "float32")
    condition, empty = policy.encode(["a circle", "two rings"]), policy.encode([""])
    x, t = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    v = policy.velocity(x, t, condition)
    v_0 = policy.velocity(x, t, empty[torch.zeros(2, dtype=torch.long)])
    for scale in (0.0, 1.0, 4.5):
        guided = policy.under("policy", scale)(x, t, condition)
        torch.testing.assert_close(guided, v_0 + scale * (v - v_0), atol=1e-5, rtol=1e-4)


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
    with pytest.raises(ValueError, match="follows every 40 optimiser steps, which iterations of 3 do not meet"):
        trainer(tiny, DPO(points=RenoisePairs(4)), updates_per_iteration=3)


def test_compared_points_are_not_torn_apart(tiny: str) -> None:
    with pytest.raises(ValueError, match="4 training points are compared with each other, which microbatches of 2"):
        trainer(tiny, small("dgpo"), microbatch=2)
