"""What saves memory or time says what the plain model says."""

from __future__ import annotations

import itertools
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from tiny_policies import SMALL, policy, trained
from tiny_runs import close
from torch import Tensor

from flowward import models
from flowward.models import hub
from flowward.models.adapted import Adapted
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.lora import LoRA
from flowward.system import memory
from flowward.verify import model


def velocities(one: DiffusersPolicy) -> Tensor:
    x, t = torch.randn(3, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.9])
    v = one.velocity(x, t, one.encode(["a red cat", "dog", "a"]))
    (v * x).mean().backward()
    return torch.cat([v.detach().flatten(), *(p.grad.flatten() for p in one.weights.tensors("policy").values())])


@pytest.mark.parametrize(
    "how", [{"gradient_checkpointing": True}, {"attention": "native"}, {"vae_slicing": True}, {"vae_tiling": True}]
)
def test_what_saves_memory_changes_nothing(saved: Path, how: dict[str, Any]) -> None:
    one, other = (
        models.load(str(saved), 2, "float32", loading=replace(SMALL, **more))  # type: ignore[arg-type]
        for more in ({}, how)
    )
    assert isinstance(one, DiffusersPolicy) and isinstance(other, DiffusersPolicy)
    torch.testing.assert_close(velocities(other), velocities(one), rtol=0, atol=1e-5)
    x0 = torch.randn(3, *one.latent_shape)
    torch.testing.assert_close(other.decode(x0), one.decode(x0), rtol=0, atol=1e-5)


def test_an_attention_that_is_not_there_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match="attention 'sag'"):
        models.load(str(saved), 2, "float32", loading=replace(SMALL, attention="sag"))


def test_without_a_compiler_blocks_run_as_they_are(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = velocities(models.load(str(saved), 2, "float32", loading=SMALL))  # type: ignore[arg-type]
    monkeypatch.setattr(shutil, "which", lambda name: None)
    one = models.load(str(saved), 2, "float32", loading=replace(SMALL, compile_blocks="always"))
    assert "needs a C++ compiler" in (said := capsys.readouterr().err) and said.count("flowward:") == 1
    assert torch.equal(velocities(one), plain)  # type: ignore[arg-type]


def test_a_quantised_model_is_nearly_the_same_and_trains_its_adapters(saved: Path) -> None:
    pytest.importorskip("torchao")
    whole, small = (
        models.load(str(saved), 2, "float32", loading=replace(SMALL, quantise=how))  # type: ignore[arg-type]
        for how in (None, "int8")
    )
    assert isinstance(whole, DiffusersPolicy) and isinstance(small, DiffusersPolicy)
    assert type(small.family.pipe.transformer.transformer_blocks[0].attn.to_q.weight).__name__ == "Int8Tensor"
    v, w = velocities(whole), velocities(small)
    assert 0 < (v - w).norm() / v.norm() < 0.05
    assert small.identity["base"] != whole.identity["base"]


@pytest.mark.parametrize(
    ("rank", "how", "missing", "says"),
    [
        (None, {"quantise": "int8"}, "", "train LoRA adapters"),
        (2, {"quantise": "int8", "merge_lora": "always"}, "", "without --merge-lora"),
        (
            2,
            {"quantise": "int8"},
            "torchao.quantization",
            "^--quantise int8 needs a package: pip install 'flowward\\[quantise\\]'",
        ),
        (2, {"quantise": "nf4"}, "bitsandbytes", "pip install 'flowward\\[quantise\\]'"),
    ],
)
def test_what_cannot_be_quantised_is_refused(
    saved: Path, monkeypatch: pytest.MonkeyPatch, rank: int | None, how: dict[str, Any], missing: str, says: str
) -> None:
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=says):
        models.load(str(saved), rank, "float32", loading=replace(SMALL, **how))


def test_4_bits_are_refused_on_the_cpu(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", ModuleType("bitsandbytes"))
    with pytest.raises(ValueError, match="nf4 needs a CUDA device; use --quantise int8"):
        models.load(str(saved), 2, "float32", loading=replace(SMALL, quantise="nf4"))


def test_all_weights_are_trained_in_float32_and_adapters_leave_the_base_in_half_precision(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU in bf16: an optimiser's small steps would be rounded away in bf16 weights."""
    monkeypatch.setattr(hub, "device", lambda wish: torch.device("cpu"))  # not the word, so like another one
    for rank, expected in ((None, torch.float32), (2, torch.bfloat16)):
        one = models.load(str(saved), rank, "bf16", loading=SMALL)
        assert isinstance(one, DiffusersPolicy)
        assert {tensor.dtype for tensor in one.weights.tensors("policy").values()} == {torch.float32}
        assert one.family.pipe.transformer.transformer_blocks[0].ff.net[2].weight.dtype == expected
        assert one.family.pipe.vae.dtype == torch.bfloat16
        assert velocities(one).isfinite().all()


def test_merged_adapters_say_the_same_and_leave_no_trace() -> None:
    one = policy("StableDiffusion3Pipeline")
    weights = one.weights
    assert isinstance(weights, LoRA)
    weights.add("old")
    with torch.no_grad():
        for tensor in [*weights.tensors("policy").values(), *weights.tensors("old").values()]:
            tensor.normal_(std=0.3)
    base = {key: tensor.clone() for key, tensor in one.family.pipe.transformer.state_dict().items()}
    texts, x = ["a red cat", "dog"], torch.randn(2, *one.latent_shape)
    for name in ("policy", "old", "reference"):
        apart = model.drawn(one, texts, x, 1.0, name)
        weights.merge = True
        with weights.still(name):
            merged = model.drawn(one, texts, x, 1.0, name)
            if name == "old":
                with pytest.raises(RuntimeError, match="'policy' cannot be used"):
                    one.velocity(x, torch.ones(2), one.encode(texts))
        weights.merge = False
        torch.testing.assert_close(merged, apart, rtol=0, atol=1e-5)
        assert name == "reference" or not torch.equal(merged, model.drawn(one, texts, x, 1.0, "reference"))
    after = one.family.pipe.transformer.state_dict()
    assert base.keys() == after.keys()
    assert all(torch.equal(base[key], after[key]) for key in base)
    assert all(tensor.requires_grad for tensor in weights.tensors("policy").values())


def test_where_memory_does_not_suffice_for_merging_rollouts_run_without(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = policy("StableDiffusion3Pipeline")
    weights, x, t, condition = one.weights, torch.randn(1, *one.latent_shape), torch.ones(1), one.encode(["dog"])
    assert isinstance(weights, LoRA)
    with torch.no_grad():
        for tensor in weights.tensors("policy").values():
            tensor.normal_(std=0.3)
    before, real, calls = one.velocity(x, t, condition).detach(), Adapted.whole, itertools.count()

    def fail(self: Adapted, a: Tensor, b: Tensor) -> Tensor:
        if next(calls) == 3:
            raise torch.OutOfMemoryError("CUDA")
        return real(self, a, b)

    monkeypatch.setattr(Adapted, "whole", fail)
    weights.merge = True
    for _ in range(2):  # told once
        with weights.still("policy"):
            assert torch.equal(one.velocity(x, t, condition), before)
    assert capsys.readouterr().err.count("too little memory to merge the adapters") == 1
    assert torch.equal(one.velocity(x, t, condition), before)


def test_nothing_is_merged_where_the_memory_left_is_short(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = policy("StableDiffusion3Pipeline")
    weights = one.weights
    assert isinstance(weights, LoRA)
    size = sum(layer.get_base_layer().weight.nbytes for layer in weights._layers)  # type: ignore[union-attr,operator]
    for free, merges in ((2 * size + 1, True), (2 * size, False)):
        monkeypatch.setattr(memory, "room", lambda device, free=free: free)
        weights.merge = True
        with weights.still("policy"):
            assert all(layer.disable_adapters == merges for layer in weights._layers)
        assert weights.merge == merges
    assert capsys.readouterr().err.count("too little memory to merge the adapters") == 1


def test_training_with_merged_rollouts_is_training() -> None:
    merged = policy("StableDiffusion3Pipeline")
    merged.weights.merge = True  # type: ignore[attr-defined]
    close(trained(policy("StableDiffusion3Pipeline")), trained(merged))


@pytest.mark.parametrize("rank", [2, 16])  # a low one, and one that is cheaper as a sum
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_adapted_layers_are_those_of_peft(precision: Any, rank: int) -> None:
    """Velocities and gradients, with the adapters of each name and without."""
    ours, theirs = policy("StableDiffusion3Pipeline", rank), policy("StableDiffusion3Pipeline", rank)
    ours.precision = theirs.precision = precision
    layers = [module for module in theirs.family.network.modules() if isinstance(module, Adapted)]
    assert {layer._cheaper_as_a_sum(rank) for layer in layers} == {rank == 16}
    assert len(layers) == len(list(ours.weights.tensors("policy"))) / 2
    for layer in layers:
        layer.__class__ = peft.tuners.lora.Linear
    found = []
    for one in (ours, theirs):
        one.weights.add("old")
        for seed, name in enumerate(("policy", "old")):
            for tensor in one.weights.tensors(name).values():
                tensor.data.normal_(std=0.3, generator=torch.Generator().manual_seed(seed))
        x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
        condition = one.encode(["a cat", "two dog on the left"])
        v = one.velocity(x, t, condition)
        v.square().mean().backward()
        gradients = [tensor.grad for tensor in one.weights.tensors("policy").values() if tensor.grad is not None]
        others = [one.velocity(x, t, condition, name) for name in ("old", "reference")]
        found.append([tensor.detach() for tensor in (v, *others, *gradients)])
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= (1e-5 if precision == "float32" else 0.02) * other.norm()
