"""The number of kernels that a pass launches: by hand for small functions, and held for a model of published depth."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from test_half import filled, half
from tiny_pipelines import tiny
from tiny_policies import policy
from torch import Tensor, nn
from torch.nn import functional

from flowward.cli import main
from flowward.models import launches
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.system.launches import EXACT, LOWER, Launches

SD3 = "StableDiffusion3Pipeline"


def total(work: Callable[[], Any]) -> int:
    with Launches() as counted:
        work()
    return counted.total


X, W, B = torch.randn(2, 3, 8), torch.randn(8, 8), torch.randn(8)
MANY = [torch.randn(4) for _ in range(130)]


@pytest.mark.parametrize(
    ("work", "kernels"),
    [
        (lambda: functional.linear(X, W, B), 1),
        (lambda: X.view(6, 8).t()[1:].unsqueeze(0).detach(), 0),
        (lambda: torch.empty(3) + 1, 1),
        (lambda: functional.layer_norm(X, (8,)), 1),
        (lambda: functional.rms_norm(X, (8,)), 1),  # seven functions on a processor
        (lambda: functional.scaled_dot_product_attention(X[None], X[None], X[None]), 1),
        (lambda: X.to(torch.bfloat16).to(torch.bfloat16), 1),
        (lambda: torch._foreach_mul_(MANY, 1.0), 2),  # 110 tensors in one launch
        (lambda: torch._foreach_mul(MANY, 1.0), 3),  # 64, beside the results
        (lambda: torch._foreach_mul_([torch.empty(65_536 * 400)], 1.0), 2),  # 320 blocks in one launch
    ],
)
def test_kernels_of_small_functions(work: Callable[[], Any], kernels: int) -> None:
    assert total(work) == kernels


def test_autocast_follows_the_rules_of_cuda() -> None:
    """Norms and powers run in float32 there, in bf16 on a processor; a weight that is trained is cast once."""
    x, trained = X.bfloat16(), nn.Parameter(W.clone())
    with torch.autocast("cpu", torch.bfloat16):
        with Launches() as counted:
            assert functional.layer_norm(x, (8,)).dtype == torch.float32
        assert counted.kinds == {"norms": 1, "casts": 1}
        assert total(lambda: x**2) == 2
        assert total(lambda: functional.linear(X, W)) == 3  # two casts
        assert total(lambda: functional.linear(functional.linear(x, trained), trained)) == 3  # one
        assert total(lambda: functional.linear(functional.linear(x, W), W)) == 4  # one each: it is frozen


def test_the_rules_are_those_of_the_installed_torch() -> None:
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not header.is_file():
        pytest.skip("this build of torch has no headers")
    text = header.read_text("utf-8")
    for macro, ours in (("LOWER_PRECISION_FP", LOWER), ("FP32", EXACT), ("FP32_SET_OPT_DTYPE", EXACT)):
        body = text.partition(f"#define AT_FORALL_{macro}(_)")[2].partition("#define")[0]
        theirs = {name for name in re.findall(r"_\((\w+)", body) if "loss" not in name}
        known = theirs - ours
        assert not {name for name in known if not re.search("cell|upsample|kl_div|pdist|_scaled|_entropy", name)}
    spelled = {name for name in LOWER | EXACT if not name.startswith("__")} - {"norm"}
    assert all(re.search(rf"_\({name}\b", text) for name in spelled)


def narrow(adapters: int = 4) -> DiffusersPolicy:
    """The graph of Stable Diffusion 3.5 Medium, 24 blocks, 13 of them with dual attention, in a narrow network."""
    pipe = tiny(SD3)
    pipe.transformer = diffusers.SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=pipe.transformer.config.in_channels, num_layers=24,
        attention_head_dim=8, num_attention_heads=2, caption_projection_dim=16, pos_embed_max_size=8,
        joint_attention_dim=pipe.transformer.config.joint_attention_dim, qk_norm="rms_norm",
        pooled_projection_dim=pipe.transformer.config.pooled_projection_dim,
        out_channels=pipe.transformer.config.in_channels, dual_attention_layers=tuple(range(13)),
    ).to(torch.bfloat16)  # fmt: skip
    from flowward.models import norms

    norms.fuse(pipe.transformer)
    return filled(DiffusersPolicy(SD3, FAMILIES[SD3](pipe, 32, 32), adapters, "bf16"), 0.05)


def test_stable_diffusion_launches_no_more_kernels_than_were_counted() -> None:
    """4,025 forward and 8,383 with backward before. A change that adds some must say so here and in docs/speed.md."""
    one = narrow()
    found = {name: sum(kinds.values()) for name, kinds in launches.count(one, "a cat").items()}
    assert found["training, forward"] <= 1781
    assert found["training, with backward"] <= 3832
    one.weights.merge = True  # type: ignore[attr-defined]
    merged = {name: sum(kinds.values()) for name, kinds in launches.count(one, "a cat").items()}
    assert merged["rollout"] == merged["base model"] <= 1405


def test_counting_leaves_no_trace() -> None:
    one = half()
    x, t, condition = torch.randn(1, *one.latent_shape), torch.ones(1), one.encode(["a cat"])
    before = one.velocity(x, t, condition).detach()
    launches.count(one, "a cat")
    assert torch.equal(one.velocity(x, t, condition), before)
    assert all(tensor.grad is None for tensor in one.weights.tensors("policy").values())


def test_the_command_counts_a_model_from_its_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny(SD3).save_pretrained(tmp_path)
    (tmp_path / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # none of it is read
    words = ["--model", str(tmp_path), "--size", "32", "32", "--lora-rank", "2", "--precision", "bf16"]
    for merge in ("auto", "never"):
        assert main(["bench", "launches", *words, "--merge-lora", merge]) == 0
        rows = [line.rsplit(maxsplit=6)[0].strip() for line in capsys.readouterr().out.splitlines()[3:]]
        assert rows == ["base model", "rollout", "training, forward", "training, with backward"]
    with pytest.raises(SystemExit, match="0"):
        main(["bench", "launches", "--help"])
    assert "Count the GPU kernels" in capsys.readouterr().out


@pytest.mark.slow
def test_compiled_blocks_fuse_small_kernels_and_keep_products() -> None:
    one = policy(SD3, 4)
    plain, compiled = launches.count(one, "a cat"), launches.count(one, "a cat", True)
    for name, kinds in plain.items():
        assert compiled[name]["products"] == kinds["products"]
        assert compiled[name]["attention"] == kinds["attention"]
        assert compiled[name]["fused"] + compiled[name].get("other", 0) < 0.5 * kinds["other"]
    x = torch.randn(1, *one.latent_shape)
    assert one.velocity(x, torch.ones(1), one.encode(["a cat"])).isfinite().all()


def test_gradients_of_the_stand_in_norm_reach_its_input() -> None:
    x = torch.randn(2, 8, requires_grad=True)

    def work() -> None:
        y: Tensor = functional.rms_norm(x, (8,))
        y.backward(torch.ones_like(y))

    assert total(work) == 3  # the norm, its gradient, and the ones
    assert x.grad is not None
