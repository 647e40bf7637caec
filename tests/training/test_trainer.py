"""The loop: what is evaluated how often, which weights move, and when it stops."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, close, equal, plain, same, small, snapshot, trainer
from torch import Tensor

from flowward import models, prompts
from flowward.algorithms import FDFO, AdvantageFlow, FlowGRPO
from flowward.evaluation.evaluate import Evaluation, Evaluator, measure
from flowward.evaluation.measurement import Measurement
from flowward.learning.credit import center
from flowward.learning.points import Points, Renoise, Renoised
from flowward.learning.snapshots import Decay
from flowward.process.plans import Chain
from flowward.process.policy import Models, Policy
from flowward.process.rollout import Pairs, Rollout, Sampler
from flowward.rewards import RewardError
from flowward.system import checkpoint
from flowward.training.folder import RunFolder
from flowward.training.metrics import describe
from flowward.training.trainer import Trainer, TrainingError

kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def move(policy: Policy, name: str) -> None:
    with torch.no_grad():
        for tensor in policy.weights.tensors(name).values():
            tensor.add_(0.05)


def look(policy: Policy, weights: str) -> Tensor:
    """Some velocities, to compare."""
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return policy.velocity(x, torch.linspace(0.1, 1, 4), policy.encode(list(TEXTS[:4])), weights)


# What is evaluated


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


# Which weights move


@kinds
def test_copies_follow_as_told(tiny: str, rank: int | None) -> None:
    one = trainer(tiny, algorithm(old=Decay(0.7)), rank)
    for index in range(2):
        before = {name: snapshot(one.policy, name) for name in ("old", "ema")}
        one.step()
        policy = snapshot(one.policy)
        for name, decay in (("old", 0.7), ("ema", (2 + index) / (11 + index))):
            expected = {key: decay * before[name][key] + (1 - decay) * policy[key] for key in policy}
            close(snapshot(one.policy, name), expected)
            assert not equal(snapshot(one.policy, name), before[name])
            assert not equal(snapshot(one.policy, name), policy)


@kinds
def test_only_what_is_trained_moves(tiny: str, rank: int | None) -> None:
    """All of the policy; of LoRA the adapter alone. The reference answers as the loaded model, to the bit."""
    base = look(models.load(tiny, None, "float32"), "policy")
    one = trainer(tiny, rank=rank)
    network = one.policy.weights.network("policy")
    with network as module:
        frozen = {key: tensor for key, tensor in module.named_parameters() if ".lora_" not in key and rank}
    before = {key: tensor.detach().clone() for key, tensor in frozen.items()}
    start = {name: snapshot(one.policy, name) for name in ("policy", "old", "ema")}
    assert torch.equal(look(one.policy, "reference"), base)
    for _ in range(3):
        one.step()
        assert torch.equal(look(one.policy, "reference"), base)
    assert equal(before, frozen)
    for name, tensors in start.items():
        now = snapshot(one.policy, name)
        still = [key for key in now if torch.equal(now[key], tensors[key])]
        # in the last block the text is read, and asks nothing
        assert all("blocks.1.attn" in key and "add" in key for key in still), still
    assert (look(one.policy, "policy") - base).abs().max() > 1e-4


@kinds
def test_the_gradient_reaches_the_policy_alone(tiny: str, rank: int | None) -> None:
    one = trainer(tiny, rank=rank)
    rollout, images = one.sample(list(TEXTS[:2]), 0)
    points = one.algorithm.points(one.credit(rollout, bright(images, [])[:, None], list(TEXTS)), ("points", 0, 0))
    one.algorithm.loss(one.models, points.take(torch.arange(8)))[0].sum().backward()
    gradients = {key: tensor.grad for key, tensor in one.policy.weights.tensors("policy").items()}
    assert sum(g is not None and g.abs().max() > 0 for g in gradients.values()) >= len(gradients) // 2 - 1
    for name in ("old", "ema"):
        assert all(tensor.grad is None for tensor in one.policy.weights.tensors(name).values())
    for name in ("policy", "old", "reference"):
        with one.policy.weights.network(name) as module:
            others = [p for key, p in module.named_parameters() if rank and ".policy." not in key]
            if name != "policy" and not rank:
                others = list(module.parameters())
        assert all(parameter.grad is None for parameter in others)


@kinds
@pytest.mark.parametrize("lam", [0.0, 1e-3])
def test_equal_rewards_give_no_update(tiny: str, rank: int | None, lam: float) -> None:
    """Up to rounding: the loss has its minimum where the policy is."""
    one = plain(trainer(tiny, algorithm(lam=lam), rank, reward=same))
    before = snapshot(one.policy)
    metrics = one.step().metrics
    close(before, snapshot(one.policy))
    assert metrics["zero_variance"] == 1
    assert metrics["gradient_norm"] < 1e-4


@kinds
def test_the_global_random_state_is_neither_used_nor_changed(tiny: str, rank: int | None) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        policy = models.load(tiny, rank, "float32")
        state = torch.get_rng_state()
        one = Trainer(algorithm(), policy, bright, prompts.of("mine", TEXTS), small())
        metrics = [one.step().metrics for _ in range(2)]
        assert torch.equal(torch.get_rng_state(), state)
        found.append((metrics, snapshot(one.policy)))
    assert found[0][0] == found[1][0]
    assert equal(found[0][1], found[1][1])


def test_the_seed_changes_everything_that_is_drawn(tiny: str) -> None:
    assert trainer(tiny, seed=0).step().metrics["reward"] != trainer(tiny, seed=1).step().metrics["reward"]


# When it stops


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@kinds
def test_a_loss_that_is_not_finite_stops_before_the_weights(
    tiny: str, tmp_path: Path, rank: int | None, bad: float
) -> None:
    ended: list[int] = []

    class Bad(AdvantageFlow):
        def loss(self, models: Models, points: Points) -> tuple[Tensor, dict[str, Tensor]]:
            loss, metrics = super().loss(models, points)
            return (loss * torch.tensor([1.0, bad, 1, 1, 1, 1, 1, 1]) if ended else loss), metrics

    one = trainer(tiny, Bad(rollout=Sampler(2), points=Renoise(1)), rank)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    ended.append(next(steps).index)
    before = {name: snapshot(one.policy, name) for name in ("policy", "old", "ema")}
    with pytest.raises(TrainingError, match="the gradient of iteration 2 is NaN or infinite"):
        next(steps)
    assert all(equal(snapshot(one.policy, name), tensors) for name, tensors in before.items())
    assert [line["iteration"] for line in folder.lines()] == [1]
    (saved,) = folder.checkpoints()
    state = checkpoint.load(saved)
    assert state["iteration"] == 1
    assert equal(state["weights"]["policy"], before["policy"])
    assert all(parameter.grad is None for parameter in one.parameters)


def test_one_gradient_that_is_not_finite_is_enough(tiny: str) -> None:
    one = trainer(tiny)
    one.step()
    before, moments = snapshot(one.policy), checkpoint._pack(one.optimiser.state_dict(), "", {})
    one.parameters[5].register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(TrainingError, match=r"gradient .* NaN or infinite"):
        one.step()
    assert equal(snapshot(one.policy), before)
    assert checkpoint._pack(one.optimiser.state_dict(), "", {}) == moments
    assert one.iteration == 1


@kinds
def test_an_iteration_that_fails_half_way_is_taken_back(
    tiny: str, tmp_path: Path, rank: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two updates fails: the first is undone, and what came before is saved, to the last bit."""
    one = trainer(tiny, rank=rank, updates_per_iteration=2, iterations=4, checkpoint_every=25)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    for _ in range(3):
        next(steps)
    before, moments = snapshot(one.policy), checkpoint._pack(one.optimiser.state_dict(), "", {})
    updates, original = [], Trainer.update

    def update(self: Trainer, number: int) -> float:
        updates.append(number)
        if len(updates) == 2:
            raise TrainingError("no")
        return original(self, number)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(TrainingError):
        next(steps)
    assert updates == [6, 7]
    assert equal(snapshot(one.policy), before)
    assert checkpoint._pack(one.optimiser.state_dict(), "", {}) == moments
    (saved,) = folder.checkpoints()
    assert saved.stem == "000003"
    assert equal(checkpoint.load(saved)["weights"]["policy"], before)


def test_weights_that_have_blown_up_are_not_saved(tiny: str, tmp_path: Path) -> None:
    """A reward need not notice: NaN compared with anything is false."""
    one = trainer(
        tiny, reward=lambda images, texts, metadata=None: (images.mean((1, 2, 3)) > 0.5).float(), iterations=9
    )
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    next(steps)
    with torch.no_grad():
        for tensor in one.policy.weights.tensors("old").values():
            tensor.fill_(float("nan"))
    with pytest.raises(TrainingError, match="the samples of iteration 2 are not finite"):
        next(steps)
    assert folder.checkpoints() == []


def test_a_resumed_run_has_its_own_settings_of_the_optimiser(tiny: str) -> None:
    state = trainer(tiny, weight_decay=0.5).state_dict()
    one = trainer(tiny, weight_decay=0.1, betas=(0.8, 0.9))
    one.load_state_dict(state)
    assert one.optimiser.param_groups[0]["weight_decay"] == 0.1
    assert one.optimiser.param_groups[0]["betas"] == (0.8, 0.9)


def test_guided_pairs_are_on_policy(tiny: str) -> None:
    """What is trained is guided as what was recorded."""
    how = FDFO(rollout=Pairs(3, 1.0, "linear", guidance=2.0))
    one = trainer(tiny, how, group_size=2, microbatch=24)
    assert one.step().metrics["distance"] < 1e-10


def test_a_reward_that_fails_leaves_the_trainer_as_it_was(tiny: str) -> None:
    broken: list[bool] = []

    def reward(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return bright(images, texts) / (0 if broken else 1)

    one, whole = trainer(tiny, reward=reward), trainer(tiny)
    one.step()
    broken.append(True)
    with pytest.raises(RewardError, match="returned inf for 8 of 8 images, the first for the prompt"):
        one.step()
    broken.clear()
    whole.step()
    assert one.step().metrics == whole.step().metrics  # as if nothing had been


def test_a_measurement_that_fails_loses_no_iteration(tiny: str, tmp_path: Path) -> None:
    class Fails(Evaluator):
        def measure(self) -> Measurement:
            raise RewardError("no")

    one = trainer(tiny, evaluate_every=2)
    folder = RunFolder.create(tmp_path / "run", {})
    next(steps := one.steps(folder=folder))
    steps.close()
    with pytest.raises(RewardError):
        next(one.steps(Fails(one.policy, Evaluation(), one.prompts), folder))
    assert [line["iteration"] for line in folder.lines()] == [1, 2]
    assert [path.stem for path in folder.checkpoints()] == ["000001", "000002"]


@kinds
def test_another_model_s_state_is_refused(tiny: str, rank: int | None) -> None:
    one = trainer(tiny, rank=rank)
    state = one.state_dict()
    for other, said in (
        (state | {"identity": {**state["identity"], "weights": "lora-9"}}, "another model: its weights differs"),
        ({}, "another model"),
        (state | {"weights": {"policy": state["weights"]["policy"]}}, "no 'old' weights"),
    ):
        with pytest.raises(ValueError, match=said):
            one.load_state_dict(other)


def test_a_failure_amid_samples_leaves_the_weights_free(tiny: str) -> None:
    """Even while it is remembered with its frames, as notebooks do."""
    one = trainer(tiny, rank=2)
    condition = one.policy.encode([TEXTS[0]])
    expected = one.policy.velocity(torch.zeros(1, *one.policy.latent_shape), torch.ones(1), condition)

    def fails(images: torch.Tensor, *_: Any) -> torch.Tensor:
        raise ZeroDivisionError("no")

    held_out, how = prompts.of("x", TEXTS), Evaluation(images=2, weights="ema", sampler=Sampler(2), batch=1)
    with pytest.raises(RewardError) as first:
        measure(one.policy, held_out, how, rewards={"fails": fails})
    with pytest.raises(ZeroDivisionError) as second:
        one.sample([TEXTS[0], TEXTS[1]], 0, fails)  # type: ignore[arg-type]
    found = one.policy.velocity(torch.zeros(1, *one.policy.latent_shape), torch.ones(1), condition)
    assert torch.equal(found, expected) and found.requires_grad
    assert first.tb and second.tb
