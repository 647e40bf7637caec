"""Which weights an iteration moves, and what its randomness depends on."""

from __future__ import annotations

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, close, equal, plain, same, small, snapshot, trainer
from torch import Tensor

from flowward import models, prompts
from flowward.learning.snapshots import Decay
from flowward.process.policy import Policy
from flowward.training.trainer import Trainer

kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def look(policy: Policy, weights: str) -> Tensor:
    """Some velocities, to compare."""
    x = torch.randn(4, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return policy.velocity(x, torch.linspace(0.1, 1, 4), policy.encode(list(TEXTS[:4])), weights)


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
