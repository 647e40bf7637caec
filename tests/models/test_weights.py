"""Weights: `policy`, its copies and `reference`, in full and as LoRA adapters."""

from __future__ import annotations

import pytest
import torch
from built_in_policies import inputs, kinds, load, look, move

from flowward import models
from flowward.models.lora import ATTENTION
from flowward.models.weights import Full


@kinds
def test_a_new_copy_is_the_policy(tiny: str, rank: int | None) -> None:
    policy = models.load(tiny, rank, "float32")
    move(policy)  # adapters that do nothing would all look alike
    for name in ("old", "ema"):
        policy.weights.add(name)
    start = policy.weights.tensors("policy")
    for name in ("old", "ema"):
        copy = policy.weights.tensors(name)
        assert list(copy) == list(start)
        assert all(torch.equal(copy[key], start[key]) for key in start)
        assert all(copy[key].data_ptr() != start[key].data_ptr() for key in start)
        assert torch.equal(look(policy, name), look(policy))


@kinds
def test_copies_are_apart(tiny: str, rank: int | None) -> None:
    policy = load(tiny, rank)
    before = look(policy)
    for name in ("policy", "old"):
        move(policy, name)
        assert (look(policy, name) - before).abs().max() > 1e-3
        assert torch.equal(look(policy, "ema"), before)
        assert torch.equal(look(policy, "reference"), before)


@kinds
def test_following(tiny: str, rank: int | None) -> None:
    policy = load(tiny, rank)
    start = {key: tensor.detach().clone() for key, tensor in policy.weights.tensors("old").items()}
    move(policy, by=1.0)
    policy.weights.follow("old", 0.75)
    for key, tensor in policy.weights.tensors("old").items():
        torch.testing.assert_close(tensor, start[key] + 0.25, rtol=0, atol=1e-6)
    policy.weights.follow("old", 0.0)
    copy, mine = policy.weights.tensors("old"), policy.weights.tensors("policy")
    assert all(torch.equal(copy[key], mine[key]) for key in mine)


@kinds
def test_a_copy_is_restored_in_place(tiny: str, rank: int | None) -> None:
    policy = load(tiny, rank)
    values = {key: tensor.detach().clone() for key, tensor in policy.weights.tensors("policy").items()}
    live = list(policy.weights.tensors("policy").values())
    move(policy)
    policy.weights.load("policy", values)
    assert all(a is b for a, b in zip(live, policy.weights.tensors("policy").values(), strict=True))  # for optimisers
    assert torch.equal(look(policy), look(policy, "old"))
    first = next(iter(values))
    for other, said in (
        ({}, f"'{sorted(values)[0]}' is missing"),
        ({**values, "more": torch.zeros(1)}, "'more' is not part of this model"),
        ({**values, first: torch.zeros(7)}, f"'{first}' has shape \\[7\\], but this model needs"),
    ):
        with pytest.raises(ValueError, match=f"belong to another model: {said}"):
            policy.weights.load("policy", other)


@kinds
def test_gradients_flow_for_the_policy_alone(tiny: str, rank: int | None) -> None:
    policy = load(tiny, rank)
    move(policy)
    for name in ("old", "ema", "reference"):
        assert not policy.velocity(*inputs(policy), name).requires_grad
    policy.velocity(*inputs(policy)).square().mean().backward()
    mine = policy.weights.tensors("policy").values()
    assert all(tensor.requires_grad for tensor in mine)
    assert sum(tensor.grad is not None and bool(tensor.grad.abs().max() > 0) for tensor in mine) > 0.9 * len(mine)
    with policy.weights.network("policy") as network:
        others = [p for p in network.parameters() if not any(p is tensor for tensor in mine)]
    assert all(p.grad is None and not p.requires_grad for p in others)


@kinds
def test_one_gradient_does_not_care_what_is_asked_in_between(tiny: str, rank: int | None) -> None:
    """What was asked of a copy between the two passes is not seen in the second."""
    policy = load(tiny, rank)
    found = []
    for between in ((), ("old", "reference", "ema")):
        loss = policy.velocity(*inputs(policy)).square().mean()
        for name in between:
            policy.velocity(*inputs(policy), name)
        parameters = list(policy.weights.tensors("policy").values())
        found.append(torch.autograd.grad(loss, parameters, allow_unused=True))
    for a, b in zip(*found, strict=True):
        assert (a is None) == (b is None)
        assert a is None or torch.equal(a, b)


@pytest.mark.parametrize("name", ["old", "reference"])
def test_weights_that_stay_are_switched_to_once(tiny: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = load(tiny, 2)
    policy.weights.add("old")
    move(policy)
    with policy.weights.network("policy") as network:
        pass
    calls: list[str] = []
    layer = next(each for each in network.modules() if hasattr(each, "lora_A"))
    for owner, method in ((policy.weights, "_put"), (layer, "enable_adapters")):
        real = getattr(owner, method)
        monkeypatch.setattr(owner, method, lambda *a, m=method, real=real: (calls.append(m), real(*a)))
    apart, calls[:] = look(policy, name), []
    with policy.weights.still(name):
        first = len(calls)
        assert torch.equal(look(policy, name), apart) and torch.equal(look(policy, name), apart)
        assert first and len(calls) == first
        with pytest.raises(RuntimeError, match=f"fixed to '{name}' during this rollout; 'policy' cannot be used"):
            look(policy)
    assert not torch.equal(look(policy), apart)
    assert all(tensor.requires_grad for tensor in policy.weights.tensors("policy").values())


def test_an_exception_leaves_the_policy_active(tiny: str) -> None:
    policy = load(tiny, 2)
    move(policy)
    expected = look(policy)
    for name in ("old", "reference"):
        with pytest.raises(ZeroDivisionError), policy.weights.network(name):
            raise ZeroDivisionError
        assert torch.equal(look(policy), expected)


def test_a_fresh_adapter_changes_nothing(tiny: str) -> None:
    base = look(models.load(tiny, None, "float32"))
    policy = load(tiny, 2)
    for name in ("policy", "old", "reference"):
        assert torch.equal(look(policy, name), base)
    move(policy)
    assert torch.equal(look(policy, "reference"), base)  # adapters off


def test_a_fresh_adapter_is_always_the_same(tiny: str) -> None:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(models.load(tiny, 2, "float32").weights.tensors("policy"))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert all(tensor.std() > 0 for key, tensor in found[0].items() if "lora_A" in key)
    other = models.load(tiny, 2, "float32", seed=1).weights.tensors("policy")
    assert all(not torch.equal(other[key], found[0][key]) for key in other if "lora_A" in key)


def test_adapters_sit_where_those_of_sd3_sit(tiny: str) -> None:
    policy = load(tiny, 3)
    keys = list(policy.weights.tensors("policy"))
    targets = {name for key in keys for name in ATTENTION if f".attn.{name}.lora_" in key}
    assert targets == {"to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"}
    assert len(keys) == 2 * (2 * 8 - 1)  # A and B in two blocks; the last one writes no text
    assert all(".attn." in key for key in keys)
    assert {min(tensor.shape) for tensor in policy.weights.tensors("policy").values()} == {3}
    exported = policy.weights.export("policy")  # type: ignore[attr-defined]
    assert "transformer_blocks.0.attn.add_q_proj.lora_A.weight" in exported and len(exported) == len(keys)


def test_an_adapter_needs_a_rank(tiny: str) -> None:
    with pytest.raises(ValueError, match="LoRA rank must be between 1 and 4096, not 0"):
        models.load(tiny, 0, "float32")


def test_a_copy_on_the_host_comes_to_the_device_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for a whole rollout, and for each single use outside of one; the policy and other copies do not move."""
    moved: list[str] = []
    weights = Full(torch.nn.Linear(3, 2), on_host=("reference",))
    weights.add("old"), weights.add("reference")
    to = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, where: (moved.append(str(where)), to(self, where))[1])
    with weights.still("reference"):
        for _ in range(2):
            with weights.network("reference") as network:
                assert torch.equal(network.weight, weights.tensors("policy")["weight"])
    assert moved == ["cpu", "cpu"]  # to the device, which is a CPU here, and back
    with weights.network("reference"), weights.network("old"), weights.still("policy"):
        assert len(moved) == 3
    weights.follow("reference", 0.5)
    assert len(moved) == 4 and weights.same("reference")
