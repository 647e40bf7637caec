"""The loop: batch arithmetic, what is evaluated how often, which weights move, and when it stops."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import flowward
from flowward import checkpoint, models, prompts
from flowward.algorithms import AdvantageFlow
from flowward.evaluate import Evaluation, Evaluator
from flowward.folder import RunFolder
from flowward.models.policy import Models, Policy
from flowward.points import Points, Renoise, Renoised
from flowward.prompts import PromptSet
from flowward.rewards import RewardError
from flowward.rollout import Rollout, Sampler
from flowward.snapshots import Decay
from flowward.trainer import Run, Trainer, TrainingError, describe

TEXTS = ("a circle", "a red square", "two rings", "a cross above a ring", "a diamond and a triangle")

kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def bright(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.mean((1, 2, 3))


def same(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return torch.full((len(images),), 0.3)


def algorithm(**changes: Any) -> AdvantageFlow:
    return AdvantageFlow(**{"rollout": Sampler(steps=2), "points": Renoise(1), **changes})


def small(**changes: Any) -> Run:
    numbers = {"iterations": 3, "images_per_update": 8, "group_size": 4, "microbatch": 8, "learning_rate": 1e-3}
    return Run(**{**numbers, **changes})


def trainer(
    tiny: str, how: AdvantageFlow | None = None, rank: int | None = None, reward: Any = bright, **changes: Any
) -> Trainer:
    policy = models.load(tiny, rank, "float32")
    return Trainer(how or algorithm(), policy, reward, prompts.of("mine", TEXTS), small(**changes))


def snapshot(policy: Policy, name: str = "policy") -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in policy.weights.tensors(name).items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=1e-5, msg=lambda said, key=key: f"{key}: {said}")


def plain(one: Trainer) -> Trainer:
    """It takes plain gradient steps of size 1 from now on: Adam would blow rounding errors up to its step size."""
    one.run = replace(one.run, learning_rate=1.0, warmup=0)
    one.optimiser = torch.optim.SGD(one.parameters, 1.0)
    return one


def move(policy: Policy, name: str) -> None:
    with torch.no_grad():
        for tensor in policy.weights.tensors(name).values():
            tensor.add_(0.05)


def look(policy: Policy, weights: str) -> Tensor:
    """Some velocities, to compare."""
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return policy.velocity(x, torch.linspace(0.1, 1, 4), policy.encode(list(TEXTS[:4])), weights)


# Batches


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group_size": 1}, "group_size is 1"),
        ({"group_size": 0}, "group_size is 0"),
        ({"images_per_update": 10}, "10 images per update x 1 updates = 10 .* groups of 4 do not divide"),
        ({"images_per_update": 6, "updates_per_iteration": 3}, "6 images per update x 3 updates = 18 .* groups of 4"),
        ({"images_per_update": 0}, "images_per_update must be at least 1, not 0"),
        ({"updates_per_iteration": 0}, "updates_per_iteration must be at least 1, not 0"),
        ({"microbatch": 0}, "microbatch must be at least 1, not 0"),
        ({"rollout_batch": -1}, "rollout_batch must be at least 1, not -1"),
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
        (1, {"microbatch": 3}, "8 images per update give 8 training points, which microbatches of 3 do not divide"),
        (3, {"microbatch": 16}, "8 images per update give 24 training points, which microbatches of 16 do not"),
        (1, {"microbatch": 6, "updates_per_iteration": 3}, "8 images per update give 8 training points"),
    ],
)
def test_microbatches_that_do_not_divide_are_refused(
    tiny: str, per_image: int, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        trainer(tiny, algorithm(points=Renoise(per_image)), **changes)


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
    points = one.algorithm.points(one.credit(rollout, bright(images, [])), ("points", 0, 1))
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
    expected["none", "old"] += 32
    if lam:
        expected["none", "reference"] += 32
    assert counts == expected


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
    rollout = Rollout(torch.full((6, 2), 3.0), None, torch.tensor([0, 0, 1, 1, 2, 2]), reward, reward, torch.ones(1))
    found = describe(rollout, ["a", "b", "a"])
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
    points = one.algorithm.points(one.credit(rollout, bright(images, [])), ("points", 0, 0))
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
    with pytest.raises(TrainingError, match="the gradient of iteration 2 is not finite"):
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
    with pytest.raises(TrainingError, match="not finite"):
        one.step()
    assert equal(snapshot(one.policy), before)
    assert checkpoint._pack(one.optimiser.state_dict(), "", {}) == moments
    assert one.iteration == 1


def test_an_iteration_that_fails_half_way_is_not_saved(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of two updates fails: the weights belong to no iteration any more."""
    one = trainer(tiny, updates_per_iteration=2, iterations=4, checkpoint_every=2)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    for _ in range(3):
        next(steps)
    updates, original = [], Trainer.update

    def update(self: Trainer, number: int) -> float:
        updates.append(number)
        if len(updates) == 2:
            raise TrainingError("no")
        return original(self, number)

    monkeypatch.setattr(Trainer, "update", update)
    with pytest.raises(TrainingError):
        next(steps)
    assert [path.stem for path in folder.checkpoints()] == ["000002"]


def test_a_reward_that_fails_leaves_the_trainer_as_it_was(tiny: str) -> None:
    broken: list[bool] = []

    def reward(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
        return bright(images, texts) / (0 if broken else 1)

    one, whole = trainer(tiny, reward=reward), trainer(tiny)
    one.step()
    broken.append(True)
    with pytest.raises(RewardError, match="returned inf for 8 of 8 images, the first with the prompt"):
        one.step()
    broken.clear()
    whole.step()
    assert one.step().metrics == whole.step().metrics  # as if nothing had been


def test_a_measurement_that_fails_loses_no_iteration(tiny: str, tmp_path: Path) -> None:
    class Fails(Evaluator):
        def scores(self) -> dict[str, Any]:
            raise RewardError("no")

    one = trainer(tiny, evaluate_every=1)
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


# As a library


def test_a_loop_over_train(tiny: str, tmp_path: Path) -> None:
    policy = flowward.load(tiny, lora_rank=2)
    texts = flowward.prompts.of("mine", TEXTS)
    run = small(output=tmp_path / "run")
    seen = []
    for step in flowward.train(algorithm(), policy, bright, texts, run):
        seen.append((step.index, step.metrics["reward"]))
    assert [index for index, _ in seen] == [1, 2, 3]
    folder = RunFolder.open(run.output)
    assert [line["reward"] for line in folder.lines()] == [reward for _, reward in seen]
    assert folder.lines()[-1]["images"] == 24
    assert [path.stem for path in folder.checkpoints()] == ["000003"]
    with pytest.raises(ValueError, match="already holds a run"):
        next(flowward.train(algorithm(), policy, bright, texts, run))
    # the same policy can be trained on, and a run without a folder keeps nothing
    assert [step.index for step in flowward.train(algorithm(), policy, bright, texts, small(iterations=1))] == [1]
    assert list(tmp_path.iterdir()) == [run.output]


def test_with_an_evaluator_the_base_model_comes_first(tiny: str, tmp_path: Path) -> None:
    policy, texts = flowward.load(tiny), prompts.of("mine", TEXTS)
    how = Evaluation(rewards=("balance",), images=5, sampler=Sampler(2))
    run = small(output=tmp_path / "run", iterations=2, evaluate_every=0)
    steps = list(flowward.train(algorithm(), policy, bright, texts, run, Evaluator(policy, how, texts, pictures=5)))
    assert [step.index for step in steps] == [0, 1, 2]
    assert [step.evaluation is not None for step in steps] == [True, False, True]
    assert steps[0].evaluation["scores"]["balance"]["overall"]["n"] == 5
    assert sorted(path.name for path in (run.output / "samples").iterdir()) == ["000000.png", "000002.png"]


def test_the_example_of_a_bare_loop(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    code = (Path(__file__).parents[1] / "examples" / "bare_loop.py").read_text("utf-8")
    assert code.count("range(30)") == 1
    exec(code.replace("range(30)", "range(2)"), {})
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()] == [["0", "reward"], ["1", "reward"]]


def test_leaving_the_loop_early_saves(tiny: str, tmp_path: Path) -> None:
    run = small(output=tmp_path / "run", iterations=9, checkpoint_every=9)
    for step in flowward.train(algorithm(), flowward.load(tiny), bright, PromptSet("x", TEXTS, ("all",) * 5), run):
        if step.index == 2:
            break
    assert [path.stem for path in RunFolder.open(run.output).checkpoints()] == ["000002"]


def test_only_the_last_two_checkpoints_are_kept(tiny: str, tmp_path: Path) -> None:
    run = small(output=tmp_path / "run", iterations=4, checkpoint_every=1)
    list(flowward.train(algorithm(), flowward.load(tiny), bright, prompts.of("x", TEXTS), run))
    assert [path.stem for path in RunFolder.open(run.output).checkpoints()] == ["000003", "000004"]


def test_health_speaks_in_the_loop(tiny: str) -> None:
    said = trainer(tiny, algorithm(gamma=1.01, lam=0.0)).step().health
    assert any("the flattest point has curvature 0.01" in line for line in said), said
    assert "every image got the reward 0.3: there is nothing to learn from" in trainer(tiny, reward=same).step().health
    with_few = Trainer(algorithm(), models.load(tiny), bright, prompts.of("x", TEXTS[:1]), small())
    assert any("1 prompts came twice" in line for line in with_few.step().health)
