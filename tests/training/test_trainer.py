"""The loop: what is evaluated how often, and what it hands on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, close, equal, plain, snapshot, trainer
from torch import Tensor

from flowward.algorithms import DGPO, FDFO, G2RPO, FlowGRPO
from flowward.algorithms.policy_gradient import PolicyGradient
from flowward.learning.credit import center
from flowward.learning.moves import RandomSteps
from flowward.learning.points import Renoise, Renoised, RenoiseGroups
from flowward.learning.snapshots import Decay
from flowward.process.plans import Branches, Chain
from flowward.process.policy import Policy
from flowward.process.rollout import Pairs, Rollout, Sampler
from flowward.process.times import Times
from flowward.training.metrics import describe

kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def move(policy: Policy, name: str) -> None:
    with torch.no_grad():
        for tensor in policy.weights.tensors(name).values():
            tensor.add_(0.05)


def count(policy: Policy) -> Counter[tuple[str, str]]:
    """From now on, samples evaluated by (with or without gradient, weights)."""
    original, counts = policy.velocity, Counter()

    def velocity(x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        v = original(x, t, condition, weights)
        counts["gradient" if v.requires_grad else "none", weights] += len(x)
        return v

    policy.velocity = velocity  # type: ignore[method-assign]
    return counts


@pytest.mark.parametrize("behaviour", ["old", "policy"])
@pytest.mark.parametrize("lam", [0.0, 1e-3])
@kinds
def test_every_network_evaluation_is_needed(tiny: str, rank: int | None, lam: float, behaviour: str) -> None:
    """Images x steps for the rollout; per point one forward with gradient, one of `old`, one of `reference` if used."""
    how = algorithm(lam=lam, behaviour=behaviour, rollout=Sampler(steps=3), points=Renoise(2))
    one = trainer(tiny, how, rank, microbatch=4, updates_per_iteration=2, rollout_batch=7)
    counts = count(one.policy)
    one.step()
    expected = Counter({("none", behaviour): 16 * 3, ("gradient", "policy"): 32})
    expected["none", "old"] += 16  # of the second update: in the first, `old` is what the policy is
    if lam:
        expected["none", "reference"] += 32
    assert counts == expected
    counts.clear()
    one.step()
    expected["none", "old"] += 16  # it follows, and is another one now
    assert counts == expected


def partly(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """Images of the prompt that comes first in the alphabet differ, the others do not."""
    first = torch.tensor([text == min(texts) for text in texts])
    return torch.where(first, bright(images, texts), torch.ones(len(texts)))


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_points_without_advantage_cost_nothing(tiny: str, beta: float) -> None:
    """Where they have no gradient: with a pull to the reference they have one. What is learned is the same."""
    how: Any = FlowGRPO(rollout=Chain(3), beta=beta)
    one, two = (plain(trainer(tiny, how, 2, reward=partly, microbatch=4)) for _ in "ab")
    two.algorithm = type("Thorough", (FlowGRPO,), {"skips_silent": False})(rollout=Chain(3), beta=beta)
    counts, others = count(one.policy), count(two.policy)
    first, second = one.step().metrics, two.step().metrics
    assert counts["gradient", "policy"] == (8 if beta == 0 else 16)  # of 8 images with 2 random steps
    assert others["gradient", "policy"] == 16
    close(snapshot(one.policy), snapshot(two.policy))
    assert first["loss"] == pytest.approx(second["loss"], abs=1e-6)


def test_a_copy_that_is_the_policy_costs_nothing(tiny: str) -> None:
    """With a copy that follows at once and one update, `old` needs no evaluation; gradients are those of two."""
    how = algorithm(lam=1e-3, rollout=Sampler(steps=3), points=Renoise(2), old=Decay(0.0), behaviour="policy")
    one, two = (plain(trainer(tiny, how, 2, microbatch=4)) for _ in "ab")
    two._same = lambda: ()  # type: ignore[method-assign]
    counts, others = count(one.policy), count(two.policy)
    for _ in range(2):
        one.step()
        two.step()
    assert others - counts == Counter({("none", "old"): 2 * 16})
    close(snapshot(one.policy), snapshot(two.policy))


def test_prompts_are_encoded_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one, asked = trainer(tiny, rollout_batch=2), []
    original = one.policy.encode
    monkeypatch.setattr(one.policy, "encode", lambda texts: asked.append(list(texts)) or original(texts))
    one.step()
    assert asked == [[TEXTS[i] for i in one.prompts.draw(0, 0, 2)]]


@pytest.mark.parametrize("size", [3, 16])
def test_the_rollout_batch_does_not_change_the_samples(tiny: str, size: int) -> None:
    texts = [TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[2]]  # a text that comes twice still gets noise of its own
    whole, parts = (trainer(tiny, images_per_update=16, rollout_batch=n) for n in (16, size))
    (a, images), (b, others) = whole.sample(texts, 4), parts.sample(texts, 4)
    torch.testing.assert_close(a.x0, b.x0, rtol=0, atol=1e-5)
    torch.testing.assert_close(images, others, rtol=0, atol=1e-5)
    assert a.group.tolist() == b.group.tolist() == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert torch.cdist(a.x0.flatten(1), a.x0.flatten(1)).fill_diagonal_(9).min() > 0.1
    assert (whole.sample(texts, 5)[0].x0 - a.x0).abs().max() > 0.1


def test_the_behaviour_weights_are_sampled(tiny: str) -> None:
    for behaviour, other in (("old", "policy"), ("policy", "old")):
        one = trainer(tiny, algorithm(behaviour=behaviour))
        texts = list(TEXTS[:2])
        before = one.sample(texts, 0)[0].x0
        move(one.policy, other)
        assert torch.equal(one.sample(texts, 0)[0].x0, before)
        move(one.policy, behaviour)
        assert (one.sample(texts, 0)[0].x0 - before).abs().max() > 1e-3


def test_every_point_is_used_once(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[list[int]] = []
    original = Renoised.take
    monkeypatch.setattr(Renoised, "take", lambda self, n: taken.append(n.tolist()) or original(self, n))
    one = trainer(tiny, algorithm(points=Renoise(3)), updates_per_iteration=2, microbatch=4)
    for _ in range(2):
        one.step()
    first, second = ([n for part in parts for n in part] for parts in (taken[:2], taken[2:]))  # one per update
    assert sorted(first) == sorted(second) == list(range(16 * 3))
    assert first != second  # another order
    assert all(len(part) == 24 for part in taken)


def test_updates_by_step_are_off_policy_from_the_second_on(tiny: str) -> None:
    """One optimiser step per step number, first to last: only the first one trains the policy that drew the samples."""
    draw = Branches(4, 3.0, "linear", high=3, fanout=2, cohorts="branch")
    how = G2RPO(rollout=draw, points=RandomSteps(order="by-step"), clip=1e-4)
    one = trainer(tiny, how, updates_per_iteration=3, images_per_update=4, group_size=6, rollout_batch=6, microbatch=2)  # type: ignore[arg-type]
    seen: list[tuple[int, bool]] = []
    original = PolicyGradient.loss

    def watch(self: Any, models: Any, points: Any) -> Any:
        seen.extend((number, points.fresh) for number in points.step.tolist())
        return original(self, models, points)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PolicyGradient, "loss", watch)
        metrics = one.step().metrics
    assert seen == [(0, True)] * 2 + [(1, False)] * 2 + [(2, False)] * 2
    assert metrics["log_ratio@0"] == 0 != metrics["log_ratio@1"]


def test_updates_by_step_must_divide_the_steps(tiny: str) -> None:
    how: Any = G2RPO(rollout=Branches(4, high=3, fanout=2), points=RandomSteps(order="by-step"))
    with pytest.raises(ValueError, match="3 random steps per iteration cannot be split evenly over 2 updates"):
        trainer(tiny, how, updates_per_iteration=2, images_per_update=6, group_size=6, rollout_batch=6, microbatch=3)


def test_without_points_no_step_is_taken(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The advantages of a tree's images may cancel in every step that they share."""
    how: Any = FlowGRPO(rollout=Chain(4), points=RandomSteps(counted="signal"))
    one = trainer(tiny, how, microbatch=24)
    monkeypatch.setattr(RandomSteps, "_advantages", lambda self, rollout, steps: torch.zeros(steps.sample.shape[:2]))
    before = snapshot(one.policy)
    assert one.step().metrics["gradient_norm"] == 0 and equal(before, snapshot(one.policy))


def test_groups_may_share_their_times(tiny: str) -> None:
    """DGPO's code draws its times once per iteration; the noise of every group is its own."""
    for same in (False, True):
        how: Any = DGPO(rollout=Sampler(steps=6), points=RenoiseGroups(3, Times("levels"), same))
        one = trainer(tiny, how, microbatch=8)
        rollout, _ = one.sample([TEXTS[0], TEXTS[1]], 0)
        points = how.points(rollout, ("points", 0, 0))
        t = points.take(torch.arange(len(points))).t.view(2, 3, -1)
        assert (t[0].unique(dim=0).shape[0], t[0].unique(dim=1).shape[1]) == (3, 1)
        assert torch.equal(t[0], t[1]) == same
        eps = points.take(torch.arange(len(points))).eps
        assert len(eps.flatten(1).unique(dim=0)) == 6


def test_the_reward_sees_every_image_beside_its_prompt(tiny: str) -> None:
    def reward(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        seen.append((images, list(texts)))
        return bright(images, texts)

    seen: list[tuple[Tensor, list[str]]] = []
    one = trainer(tiny, reward=reward, rollout_batch=3)
    step = one.step()
    ((images, texts),) = seen
    assert images.shape == (8, 3, 32, 32) and images.min() >= 0 and images.max() <= 1
    assert texts == [TEXTS[i] for i in one.prompts.draw(0, 0, 2) for _ in range(4)]
    assert step.metrics["reward"] == pytest.approx(images.mean().item(), abs=1e-6)


def test_a_rollout_is_described() -> None:
    reward = torch.tensor([0.1, 0.1, 0.0, 1.0, 0.5, 0.5])
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    rollout = Rollout(torch.full((6, 2), 3.0), None, group, group, reward, reward, torch.ones(1))
    found = describe(replace(rollout, advantage=center(reward, group)), ["a", "b", "a"])
    assert found == pytest.approx(
        {
            "reward": 2.2 / 6,
            "reward_std": reward.std().item(),
            "zero_variance": 2 / 3,
            "latent_rms": 3.0,
            "duplicate_prompts": 1,
        }
    )


def test_guided_pairs_are_on_policy(tiny: str) -> None:
    """What is trained is guided as what was recorded."""
    how = FDFO(rollout=Pairs(3, 1.0, "linear", guidance=2.0))
    one = trainer(tiny, how, group_size=2, microbatch=24)
    assert one.step().metrics["distance"] < 1e-10
