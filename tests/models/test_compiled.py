"""Compiled blocks say what plain ones say: traced in every family, and compiled to machine code in one."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tiny_policies import policy, trained
from tiny_runs import close
from torch import Tensor

from flowward import models
from flowward.models.compiling import COMPILER, compile_blocks
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.loading import Loading


def asked(one: DiffusersPolicy) -> Tensor:
    """Velocities of all weights: the policy's with gradients and in another batch size, which graphs allow for."""
    one.weights.add("old")
    with torch.no_grad():
        for tensor in one.weights.tensors("policy").values():
            tensor.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    found = []
    for count, names in ((2, ("old", "reference")), (3, ("policy",))):
        x = torch.randn(count, *one.latent_shape, generator=torch.Generator().manual_seed(0))
        t, condition = torch.linspace(0.2, 0.8, count), one.encode(["a red cat", "dog", "a"][:count])
        for name in names:
            found.append(one.velocity(x, t, condition, name))
    found[-1].square().mean().backward()
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in one.weights.tensors("policy").values()]
    return torch.cat([tensor.detach().flatten() for tensor in (*found, *gradients)])


@pytest.mark.parametrize("name", [name for name in FAMILIES if 0 in FAMILIES[name].sources])
def test_traced_blocks_say_the_same(name: str) -> None:
    torch._dynamo.reset()
    plain, compiled = policy(name), policy(name)
    compile_blocks(compiled.family.network, "eager")
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.testing.assert_close(asked(compiled), asked(plain), rtol=0, atol=1e-5)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > before


def test_training_on_traced_blocks_is_training() -> None:
    """With merged rollouts: the same weights as without either."""
    torch._dynamo.reset()
    one = policy("StableDiffusion3Pipeline")
    one.weights.merge = True  # type: ignore[attr-defined]
    compile_blocks(one.family.network, "eager")
    close(trained(policy("StableDiffusion3Pipeline")), trained(one))


@pytest.fixture
def folders_without_spaces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch compiles in the temporary folder, and cannot if its name has spaces."""
    with tempfile.TemporaryDirectory(dir="/tmp" if os.path.isdir("/tmp") else None) as folder:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield


@pytest.mark.skipif(not shutil.which(COMPILER), reason="there is no C++ compiler")
@pytest.mark.usefixtures("folders_without_spaces")
def test_compiled_blocks_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Velocities with their gradients, in plain loops: it takes torch half a minute to find the widest vectors."""
    torch._dynamo.reset()
    monkeypatch.setattr(torch._inductor.config.cpp, "vec_isa_ok", False)
    found = []
    for compiled in (False, True):
        one = policy("WanPipeline")
        if compiled:
            compile_blocks(one.family.network)
        x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
        v = one.velocity(x, torch.tensor([0.3, 0.8]), one.encode(["a red cat", "dog"]))
        v.square().mean().backward()
        gradients = [tensor.grad for tensor in one.weights.tensors("policy").values() if tensor.grad is not None]
        found.append(torch.cat([tensor.detach().flatten() for tensor in (v, *gradients)]))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_copies_share_the_graphs_of_the_policy() -> None:
    torch._dynamo.reset()
    one = policy("StableDiffusion3Pipeline")
    compile_blocks(one.family.network, "eager")
    x, t, condition = torch.randn(2, *one.latent_shape), torch.tensor([0.3, 0.8]), one.encode(["a red cat", "dog"])
    for name in ("old", "ema"):
        one.weights.add(name)
    with torch.no_grad():
        one.velocity(x, t, condition)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for name in ("old", "ema"):
        one.velocity(x, t, condition, name)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0


@pytest.mark.parametrize("variable", ["TMPDIR", "TORCHINDUCTOR_CACHE_DIR"])
def test_in_a_folder_with_spaces_nothing_is_compiled(
    variable: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is told before a run, and not by the compiler in the middle of it."""
    folder = tmp_path / "with spaces"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(folder) if variable == "TMPDIR" else "/tmp")
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder) if variable != "TMPDIR" else "/tmp")
        patch.setattr(shutil, "which", lambda name: name)
        one = models.load(
            str(saved), 2, "float32", loading=Loading(size=(32, 32), device="cpu", compile_blocks="always")
        )
    said = capsys.readouterr().err
    assert f"name has spaces ({folder}); set {variable} to another one. Until then" in said
    block = one.family.pipe.transformer.transformer_blocks[0]  # type: ignore[attr-defined]
    assert block._compiled_call_impl is None
