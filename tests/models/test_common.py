"""Adapters of layers that read one input share a product: the same gradients, fewer products, and nothing is kept."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from itertools import groupby
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_half import SD3, asked, far, filled, half
from test_palette import NAMES
from tiny_policies import policy
from torch import Tensor, nn
from torch.nn import functional

from flowward.models import targets, working
from flowward.models.adapters import Adapters
from flowward.models.compiling import compile_blocks
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.working import Common

RANK = 3


def common(layers: int = 3) -> tuple[Common, list[Tensor]]:
    """And A of each layer."""
    random = torch.Generator().manual_seed(0)
    a = [torch.randn(RANK, 8, generator=random, requires_grad=True) for _ in range(layers)]
    return Common(torch.cat(a), layers), a


def apart(one: DiffusersPolicy) -> DiffusersPolicy:
    """Each layer with a product of its own."""
    weights: Any = one.weights
    weights._groups = [[number] for number in range(len(weights._layers))]
    return one


def commons(one: DiffusersPolicy) -> set[Common]:
    weights: Any = one.weights
    return {layer.working[0] for layer in weights._layers if layer.working}


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The A of each product, in turn."""
    seen = list[Tensor]()

    def watched(x: Tensor, a: Tensor) -> Tensor:
        seen.append(a)
        return functional.linear(x, a)

    monkeypatch.setattr(working, "functional", SimpleNamespace(linear=watched))
    return seen


def test_layers_of_one_input_share_a_product_and_nothing_is_kept(products: list[Tensor]) -> None:
    shared, a = common()
    x = torch.randn(2, 5, 8)
    for place in (0, 2, 1):  # in any order
        torch.testing.assert_close(shared.low(x, place), functional.linear(x, a[place]))
    assert len(products) == 1
    gone = weakref.ref(x)
    del x
    gc.collect()
    assert gone() is None


def test_only_the_same_tensor_unchanged_shares_a_product() -> None:
    """Not equal values in another tensor, a tensor that was changed, or a layer that is called again."""
    shared, a = common()
    x = torch.randn(2, 5, 8)
    calls: list[tuple[int, Callable[[], Tensor]]] = [
        (0, lambda: x), (1, lambda: x + 1), (2, lambda: x), (0, lambda: x.mul_(2)), (1, lambda: x.add_(1)),
        (2, lambda: x.view(10, 8)), (2, lambda: x), (2, lambda: x), (1, lambda: x[:1]),
    ]  # fmt: skip
    with torch.no_grad():
        for place, made in calls:
            given = made()
            torch.testing.assert_close(shared.low(given, place), functional.linear(given, a[place]))


def test_passes_in_inference_mode_share_too(products: list[Tensor]) -> None:
    with torch.inference_mode():
        shared, a = common()
        x = torch.randn(4, 8)
        for place in range(3):
            torch.testing.assert_close(shared.low(x, place), functional.linear(x, a[place]))
    assert len(products) == 1


APART = {  # their layers are named or marked in other ways, so some products are made alone
    "HiDreamImagePipeline",
    "StableAudio3Pipeline",
}


@pytest.mark.parametrize("name", [name for name in FAMILIES if not FAMILIES[name].sources[-1] and name not in APART])
def test_every_family_has_one_product_for_each_input_of_its_attentions(name: str, products: list[Tensor]) -> None:
    """Layers that are called in turn with one and the same tensor."""
    one, calls = half(name), list[tuple[Any, Tensor]]()
    weights: Any = one.weights
    for layer in weights._layers:
        layer.register_forward_pre_hook(lambda layer, given: calls.append((layer, given[0])))
    asked(one)
    inputs = [len(list(turn)) for _, turn in groupby(calls, lambda call: id(call[1]))]
    assert len(products) == len(inputs) < len(calls)
    assert all(not each._parts and each._x is None for each in commons(one))


@pytest.mark.parametrize("rank", [
    2, Adapters(2, targets=("to_q", "to_v")), Adapters(2, targets=("add_k_proj", "to_out.0", "to_k")),
    Adapters(2, palette=NAMES),
])  # fmt: skip
@pytest.mark.parametrize("checkpointed", [False, True])
def test_gradients_err_no_more_than_those_of_products_apart(rank: Any, checkpointed: bool) -> None:
    """Against float32. They differ by roundings only."""
    exact = asked(filled(policy(SD3, rank), 0.05))[1]
    found = []
    for one in (half(rank=rank), apart(half(rank=rank))):
        if checkpointed:
            one.family.pipe.transformer.enable_gradient_checkpointing()
        one.family.pipe.transformer.train(checkpointed)
        found.append(asked(one)[1])
    assert [each is None for each in found[0]] == [each is None for each in found[1]]
    ours, theirs, true = (torch.cat([g.flatten() for g in each if g is not None]) for each in (*found, exact))
    assert far(ours, true) < 1.1 * far(theirs, true) + 1e-4
    assert far(ours, theirs) < 0.02
    assert all(torch.nn.functional.cosine_similarity(g.flatten(), h.flatten(), dim=0) > 0.99
               for g, h in zip(*found, strict=True) if g is not None and g.norm() > 1e-3 * ours.norm())  # fmt: skip


def test_compiled_blocks_share_products_and_keep_nothing() -> None:
    torch._dynamo.reset()
    expected = asked(half())
    one = half()
    compile_blocks(one.family.network, "eager")
    for _ in range(2):
        for tensor in one.weights.tensors("policy").values():
            tensor.grad = None
        found = asked(one)
        assert torch.equal(found[0], expected[0])
        for ours, theirs in zip(found[1], expected[1], strict=True):
            assert torch.equal(ours, theirs)  # type: ignore[arg-type]
        assert all(not each._parts and each._x is None for each in commons(one))


@pytest.mark.parametrize("gradients", [True, False])
def test_a_pass_that_fails_keeps_no_activation(gradients: bool) -> None:
    """Here between two projections of an attention; the next pass is right."""
    one = half()
    expected = asked(one)[0]
    attention = one.family.pipe.transformer.transformer_blocks[1].attn

    def failing(*given: Any) -> None:
        assert any(each._parts for each in commons(one))
        raise RuntimeError("amid an attention")

    hook = attention.to_k.register_forward_pre_hook(failing)
    with torch.set_grad_enabled(gradients), pytest.raises(RuntimeError, match="amid"):
        asked(one)
    hook.remove()
    assert all(not each._parts and each._x is None for each in commons(one))
    assert torch.equal(asked(one)[0], expected)


def test_an_anchor_amid_an_attention_shares_nothing_with_the_policy() -> None:
    """Each pass has products of its own, so a copy that is asked in between changes nothing."""
    one = half()
    one.weights.add("old")
    with torch.no_grad():
        for tensor in one.weights.tensors("old").values():
            tensor.mul_(3)
    x, t, condition = torch.randn(2, *one.latent_shape), torch.tensor([0.3, 0.8]), one.encode(["a cat", "dog"])
    with torch.no_grad():
        policy_v, old_v = (one.velocity(x, t, condition, name) for name in ("policy", "old"))
        layer, inner = one.family.pipe.transformer.transformer_blocks[0].attn.to_k, list[Tensor]()

        def between(*given: Any) -> None:
            hook.remove()
            inner.append(one.velocity(x, t, condition, "old"))

        hook = layer.register_forward_pre_hook(between)
        assert torch.equal(one.velocity(x, t, condition), policy_v)
    assert torch.equal(inner[0], old_v)
    assert not torch.equal(policy_v, old_v)


class Attention(nn.Module):
    def __init__(self, crossed: bool, width: int = 8):
        super().__init__()
        self.is_cross_attention = crossed
        self.to_q, self.to_out, self.eq_k = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.to_k, self.to_v, self.to_qkv = nn.Linear(width, 8), nn.Linear(width, 8), nn.Linear(8, 24)


@pytest.mark.parametrize(
    ("attention", "groups"),
    [
        (Attention(False), {"to_q to_k to_v", "to_out", "eq_k", "to_qkv"}),
        (Attention(True), {"to_q", "to_k to_v", "to_out", "eq_k", "to_qkv"}),
        (Attention(False, 6), {"to_q", "to_k to_v", "to_out", "eq_k", "to_qkv"}),
    ],
)
def test_projections_of_one_attention_are_a_group(attention: nn.Module, groups: set[str]) -> None:
    network = nn.ModuleDict({"one": attention, "two": attention.__class__(False)})
    layers = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    names = list(layers)
    found = [[names[number] for number in group] for group in targets.together(network, layers)]
    assert sorted(name for group in found for name in group) == sorted(names)
    ours = [[name.removeprefix("one.") for name in group] for group in found if group[0].startswith("one.")]
    assert {" ".join(sorted(group, key=list(dict(attention.named_children())).index)) for group in ours} == groups


def test_only_siblings_are_a_group() -> None:
    q, k, other, wk = (nn.Linear(2, 2) for _ in range(4))
    network = nn.ModuleDict({"q": q, "k": k, "other": nn.ModuleDict({"q": other}), "wk": wk})
    assert targets.together(network, {"q": q, "k": k, "other.q": other, "wk": wk}) == [[0, 1], [2], [3]]
