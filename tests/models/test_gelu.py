"""Networks in float32 on a processor: GELU by a sigmoid, and attention by plain products (gelu.py, attention.py)."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from diffusers.models.activations import GELU
from tiny_scenes import saved
from torch import Tensor, nn
from torch.nn import functional

from flowward import models
from flowward.models import gelu
from flowward.models.scenes import ScenesPolicy
from flowward.scenes import attention
from flowward.scenes.attention import PlainAttention


def exact(x: Tensor) -> Tensor:
    return functional.gelu(x.double(), approximate="tanh")


def test_values_and_gradients_are_those_of_torch() -> None:
    """Also far from 0, where the sigmoid is 0 or 1."""
    x = torch.cat([torch.linspace(-12, 12, 4001), torch.tensor([0.0, -1e4, 1e4, 1e-20, -1e-20])])
    own, other = x.clone().requires_grad_(), x.double().requires_grad_()
    found = gelu.gelu(own)
    assert (found - exact(x)).abs().max() < 2e-6 and found.isfinite().all()
    weight = torch.linspace(-1, 1, len(x))
    (found * weight).sum().backward()
    (functional.gelu(other, approximate="tanh") * weight.double()).sum().backward()
    assert own.grad is not None and other.grad is not None
    assert (own.grad - other.grad).abs().max() < 2e-6


def test_errors_are_those_of_rounding() -> None:
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    theirs = (functional.gelu(x, approximate="tanh") - exact(x)).abs().max()
    assert (gelu.gelu(x) - exact(x)).abs().max() < 2 * theirs


def test_with_and_without_a_gradient_the_bits_are_equal_and_the_input_stays() -> None:
    x = torch.randn(7, 129, generator=torch.Generator().manual_seed(0))
    kept = x.clone()
    assert torch.equal(gelu.gelu(x), gelu.gelu(x.clone().requires_grad_()).detach()) and torch.equal(x, kept)


def test_only_layers_of_the_approximation_change_and_the_weights_stay() -> None:
    network = nn.Sequential(GELU(4, 8, approximate="tanh"), GELU(8, 4), nn.GELU())
    before = {name: each.data_ptr() for name, each in network.named_parameters()}
    gelu.quicken(network)
    assert [type(each) for each in network] == [gelu.QuickGELU, GELU, nn.GELU]
    assert {name: each.data_ptr() for name, each in network.named_parameters()} == before


@pytest.mark.parametrize("tokens", [1, 24])
def test_attention_is_that_of_torch(tokens: int) -> None:
    q, k, v = (torch.randn(2, 3, tokens, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    found, other = attention.attended(q, k, v), functional.scaled_dot_product_attention(q, k, v)
    assert torch.allclose(found, other, rtol=0, atol=1e-12)
    weight = torch.randn_like(found)
    for one, two in zip(
        torch.autograd.grad((found * weight).sum(), (q, k, v)),
        torch.autograd.grad((other * weight).sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.allclose(one, two, rtol=0, atol=1e-12)


def kinds(policy: ScenesPolicy) -> tuple[int, int]:
    """Layers of the policy's network with the quick GELU, and with plain attention."""
    with policy.weights.network("policy") as network:
        layers = list(network.modules())
    plain = [each for each in layers if isinstance(getattr(each, "processor", None), PlainAttention)]
    return sum(isinstance(each, gelu.QuickGELU) for each in layers), len(plain)


@pytest.mark.parametrize("rank", [None, 2])
def test_the_built_in_model_computes_what_diffusers_computes(tmp_path: Path, rank: int | None) -> None:
    """Velocities and gradients, with adapters too; in bf16 its layers are diffusers' own."""
    saved(tmp_path / "model")
    policy = models.load(str(tmp_path / "model"), rank, "float32")
    assert isinstance(policy, ScenesPolicy) and min(kinds(policy)) > 0
    half = models.load(str(tmp_path / "model"), rank, "bf16")
    assert isinstance(half, ScenesPolicy) and kinds(half) == (0, 0)
    plain = copy.deepcopy(half)
    plain.precision = "float32"
    x, t = torch.randn(3, *policy.latent_shape), torch.tensor([0.1, 0.5, 0.9])
    condition = policy.encode(["a red square", "a blue circle", "a green circle"])
    found = [each.velocity(x, t, condition) for each in (policy, plain)]
    assert torch.allclose(*found, rtol=1e-5, atol=1e-5)
    gradients = []
    for each, v in zip((policy, plain), found, strict=True):
        trained = [one for one in each.weights.tensors("policy").values() if one.requires_grad]
        gradients.append(torch.cat([one.flatten() for one in torch.autograd.grad(v.square().sum(), trained)]))
    assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[1].norm() and gradients[1].norm() > 0
