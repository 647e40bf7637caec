"""Policies and their weights, the network's layout, and state on disk."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from flowward import models
from flowward.models.lora import ATTENTION
from flowward.process.policy import Policy
from flowward.prompts.scenes import MAX_WORDS, prompts, vocabulary
from flowward.scenes.network import Networks, WordEncoder, new_autoencoder, new_transformer
from flowward.system import checkpoint

TEXTS = ["a circle", "a red square", "two rings", "a cross above a ring"]
kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def load(tiny: str, rank: int | None = None) -> Policy:
    policy = models.load(tiny, rank, "float32")
    for name in ("old", "ema", "reference"):
        policy.weights.add(name)
    return policy


def inputs(policy: Policy, count: int = 4) -> tuple[Tensor, Tensor, Any]:
    x = torch.randn(count, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    return x, torch.linspace(0.05, 1, count), policy.encode([TEXTS[k % 4] for k in range(count)])


@torch.no_grad()
def look(policy: Policy, weights: str = "policy") -> Tensor:
    return policy.velocity(*inputs(policy), weights)


@torch.no_grad()
def move(policy: Policy, name: str = "policy", by: float = 0.05) -> None:
    for tensor in policy.weights.tensors(name).values():
        tensor.add_(by)


# Weights


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
    for owner, method in ((policy.weights, "_put"), (network, "disable_adapters")):
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
        found.append(models.load(tiny, 2).weights.tensors("policy"))
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    assert all(tensor.std() > 0 for key, tensor in found[0].items() if "lora_A" in key)
    other = models.load(tiny, 2, seed=1).weights.tensors("policy")
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
    with pytest.raises(ValueError, match="LoRA rank must be at least 1, not 0"):
        models.load(tiny, 0)


# The model


def test_the_transformer_is_that_of_sd3(tiny: str) -> None:
    with models.load(tiny).weights.network("policy") as network:
        assert type(network) is SD3Transformer2DModel
    assert isinstance(new_transformer(), SD3Transformer2DModel)
    assert isinstance(new_autoencoder(), AutoencoderKL)
    assert sorted(path.name for path in Path(tiny).iterdir()) == ["text_encoder", "transformer", "vae"]
    # diffusers reads the two folders by itself
    SD3Transformer2DModel.from_pretrained(Path(tiny) / "transformer")
    AutoencoderKL.from_pretrained(Path(tiny) / "vae")


def test_identity_is_architecture_base_and_kind_of_weights(tiny: str, tmp_path: Path) -> None:
    full = models.load(tiny).identity
    moved = models.load(shutil.copytree(tiny, str(tmp_path / "moved"))).identity
    assert moved == full  # neither the path
    assert not any(key.startswith("_") for key in full["transformer"])  # nor the version of diffusers
    kinds = [models.load(tiny, rank).identity for rank in (None, 2, 4)]
    assert [kind["weights"] for kind in kinds] == ["full", "lora-2", "lora-4"]
    path = tmp_path / "moved/transformer/diffusion_pytorch_model.safetensors"
    save_file({key: tensor + 1 for key, tensor in load_file(path).items()}, path, {"format": "pt"})
    other = models.load(str(tmp_path / "moved")).identity
    assert {key for key in full if other[key] != full[key]} == {"base"}
    assert checkpoint_copy(tmp_path, full) == full


def checkpoint_copy(folder: Path, state: dict[str, Any]) -> dict[str, Any]:
    checkpoint.save(folder / "copy.safetensors", state)
    return checkpoint.load(folder / "copy.safetensors")


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@kinds
def test_velocity_is_float32_and_deterministic(tiny: str, rank: int | None, precision: Any) -> None:
    policy = models.load(tiny, rank, precision)
    v = policy.velocity(*inputs(policy))
    assert v.dtype == torch.float32 and v.shape == (4, *policy.latent_shape)
    assert v.requires_grad and v.isfinite().all() and v.std() > 0.1
    assert torch.equal(v, policy.velocity(*inputs(policy)))
    images = policy.decode(inputs(policy)[0])
    assert images.dtype == torch.float32 and images.shape == (4, 3, 32, 32)
    assert images.min() >= 0 and images.max() <= 1 and not images.requires_grad


def test_precisions_are_close_and_not_the_same(tiny: str) -> None:
    v, w = (look(models.load(tiny, None, precision)) for precision in ("float32", "bf16"))
    assert 0 < (v - w).abs().max() < 0.05


def test_velocity_depends_on_time_and_words(tiny: str) -> None:
    policy = models.load(tiny, None, "float32")
    x, t, condition = inputs(policy)
    with torch.no_grad():
        v = policy.velocity(x, t, condition)
        assert (policy.velocity(x, t * 0.5, condition) - v).abs().amax((1, 2, 3)).min() > 1e-4
        turned = condition[torch.tensor([1, 2, 3, 0])]
        assert (policy.velocity(x, t, turned) - v).abs().amax((1, 2, 3)).min() > 1e-4


@kinds
def test_velocity_does_not_depend_on_the_batch(tiny: str, rank: int | None) -> None:
    policy = models.load(tiny, rank, "float32")
    move(policy, by=0.01)
    x, t, condition = inputs(policy, 33)
    with torch.no_grad():
        whole = policy.velocity(x, t, condition)
        for rows in (torch.tensor([0]), torch.tensor([32, 5, 17]), torch.arange(16)):
            alone = policy.velocity(x[rows], t[rows], condition[rows])
            torch.testing.assert_close(alone, whole[rows], rtol=0, atol=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "float32"])
@kinds
def test_sampling_and_training_ask_one_network(tiny: str, rank: int | None, precision: Any) -> None:
    """With a gradient or without, the same kernels: before an update every ratio is 1 and every distance 0, exactly."""
    policy = models.load(tiny, rank, precision)
    move(policy, by=0.01)
    policy.weights.add("old")
    x, t, condition = inputs(policy, 33)
    with_gradient = policy.velocity(x, t, condition)
    with torch.no_grad():
        assert torch.equal(policy.velocity(x, t, condition), with_gradient.detach())
        assert torch.equal(policy.velocity(x, t, condition, "old"), with_gradient.detach())


def test_every_prompt_of_the_world_can_be_read() -> None:
    encoder = WordEncoder(vocabulary(), 8)
    texts = list(prompts())
    ids = encoder.tokenize(texts)
    assert ids.shape == (len(texts), MAX_WORDS)
    assert len({tuple(row) for row in ids.tolist()}) == len(texts)  # and told from every other


def test_prompts_are_read_in_order_and_one_by_one(tiny: str) -> None:
    policy = models.load(tiny)
    words = policy.encode(["a circle above a ring", "a ring above a circle", "A  Ring ABOVE a circle"]).tensors
    assert (words["pooled"][0] - words["pooled"][1]).abs().max() > 1e-4
    assert torch.equal(words["words"][1], words["words"][2])
    alone = policy.encode(["a ring above a circle"]).tensors
    torch.testing.assert_close(alone["pooled"][0], words["pooled"][1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a green zebra", "the built-in model does not know the word 'zebra' \\(prompt 'a green zebra'\\)"),
        ("a ring " * 5, "has 10 words; the built-in model reads at most 8"),
    ],
)
def test_prompts_that_cannot_be_read(tiny: str, prompt: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        models.load(tiny).encode(["a circle", prompt])


def test_networks_survive_the_disk(tiny: str, tmp_path: Path) -> None:
    one = Networks.load(Path(tiny))
    shutil.copytree(Path(tiny) / "text_encoder", tmp_path / "text_encoder")
    one.transformer.half().save_pretrained(tmp_path / "transformer")
    one.autoencoder.half().save_pretrained(tmp_path / "vae")
    two = Networks.load(tmp_path)
    for name in ("transformer", "autoencoder", "text_encoder"):
        a, b = getattr(Networks.load(Path(tiny)), name), getattr(two, name)
        assert all(p.dtype == torch.float32 for p in b.parameters())
        for key, tensor in a.state_dict().items():
            assert torch.equal(tensor, b.state_dict()[key]), (name, key)


def test_saving_rounds_the_copy_and_not_the_networks(tmp_path: Path) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        one = Networks.new()
    one.autoencoder.register_to_config(shift_factor=0.25, scaling_factor=1.5)
    before = one.transformer.proj_out.weight.clone()
    one.save(tmp_path)
    assert torch.equal(one.transformer.proj_out.weight, before)
    two = Networks.load(tmp_path)
    assert torch.equal(two.transformer.proj_out.weight, before.half().float())
    assert (two.autoencoder.config.shift_factor, two.autoencoder.config.scaling_factor) == (0.25, 1.5)
    assert two.text_encoder.words == vocabulary()
    ids = two.text_encoder.tokenize(TEXTS)
    torch.testing.assert_close(two.text_encoder(ids)[1], one.text_encoder(ids)[1], rtol=0, atol=1e-2)


# State on disk


def test_any_nest_survives_the_disk(tmp_path: Path) -> None:
    tensors = [
        torch.arange(6).reshape(2, 3).T,  # not contiguous
        torch.tensor(1.5, dtype=torch.bfloat16),
        torch.zeros(0, 3, dtype=torch.int64),
        torch.tensor([True, False]),
    ]
    state: dict[Any, Any] = {
        "a.b": tensors[0],
        "a": {"b": tensors[1], 0: {"exp_avg": tensors[2]}, "0": tensors[3]},
        7: None,
        "numbers": [1, 2.5, float("inf"), True, "text ñ", ()],
        "betas": (0.9, (0.999, None)),
        "empty": {},
        "lists": [[], [tensors[0][0]], {"x": [None]}],
    }
    found = checkpoint_copy(tmp_path, state)
    assert list(found) == list(state)
    for original, read in (
        (tensors[0], found["a.b"]),
        (tensors[1], found["a"]["b"]),
        (tensors[2], found["a"][0]["exp_avg"]),
        (tensors[3], found["a"]["0"]),
        (tensors[0][0], found["lists"][1][0]),
    ):
        assert read.dtype == original.dtype and torch.equal(read, original)
    assert list(found["a"]) == ["b", 0, "0"]
    assert found["numbers"] == state["numbers"] and found["numbers"][3] is True
    assert found["betas"] == state["betas"] and found[7] is None
    assert (found["empty"], found["lists"][0], found["lists"][2]) == ({}, [], {"x": [None]})


def test_a_state_without_tensors(tmp_path: Path) -> None:
    assert checkpoint_copy(tmp_path, {"iteration": 3}) == {"iteration": 3}


def test_what_is_saved_is_a_copy(tmp_path: Path) -> None:
    shared = torch.ones(3)
    checkpoint.save(tmp_path / "x", {"a": shared, "b": shared, "c": torch.nn.Parameter(shared)})
    shared.zero_()
    found = checkpoint.load(tmp_path / "x")
    assert all(torch.equal(found[key], torch.ones(3)) and not found[key].requires_grad for key in "abc")


def test_an_optimiser_survives_the_disk(tmp_path: Path) -> None:
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = torch.optim.AdamW([weight], 0.1, betas=(0.8, 0.99))
    weight.grad = torch.tensor([1.0, -2, 3])
    optimiser.step()
    other = torch.nn.Parameter(weight.detach().clone())
    again = torch.optim.AdamW([other], 0.5)
    again.load_state_dict(checkpoint_copy(tmp_path, optimiser.state_dict()))
    for parameter, one in ((weight, optimiser), (other, again)):
        parameter.grad = torch.tensor([0.5, 0.5, 0.5])
        one.step()
    assert torch.equal(weight, other)


@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "flowward.system.checkpoint.save_file"])
def test_a_failure_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, {"a": torch.ones(3)})

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(where, full)
        checkpoint.save(path, {"a": torch.zeros(3)})
    assert torch.equal(checkpoint.load(path)["a"], torch.ones(3))
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no checkpoint at"):
        checkpoint.load(tmp_path / "x.safetensors")
