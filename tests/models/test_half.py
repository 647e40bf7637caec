"""A network in half precision runs as its own pipeline runs it, without autocast, and its adapters stay float32."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers.models.normalization import RMSNorm
from tiny_pipelines import small, tiny
from tiny_policies import policy
from torch import Tensor, nn

from flowward.models import norms
from flowward.models.adapted import Adapted
from flowward.models.compiling import compile_blocks
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.lora import LoRA
from flowward.models.working import working
from flowward.verify import model

SD3 = "StableDiffusion3Pipeline"


def half(name: str = SD3, rank: int = 2, std: float = 0.05) -> DiffusersPolicy:
    """In bf16, with adapters that change something."""
    torch.set_num_threads(1)
    pipe = tiny(name)
    for part in ("transformer", "transformer_2"):
        if getattr(pipe, part, None) is not None:
            _halved(getattr(pipe, part))
    one = DiffusersPolicy(name, FAMILIES[name](pipe, **small(name)), rank, "bf16")
    return filled(one, std)


def _halved(network: Any) -> None:
    """As from_pretrained does it: some modules of some networks stay in float32."""
    kept = tuple(network._keep_in_fp32_modules or ())
    for name, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if tensor.is_floating_point() and not any(part in name.split(".") for part in kept):
            tensor.data = tensor.data.bfloat16()


def filled(one: DiffusersPolicy, std: float) -> DiffusersPolicy:
    random = torch.Generator().manual_seed(1)
    for tensor in one.weights.tensors("policy").values():
        tensor.data.normal_(std=std, generator=random)
    return one


def asked(one: DiffusersPolicy, weights: str = "policy") -> tuple[Tensor, list[Tensor | None]]:
    """A velocity and the gradients of its mean square."""
    x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    v = one.velocity(x, torch.tensor([0.3, 0.8]), one.encode(["a cat", "two dog on the left"]), weights)
    if v.requires_grad:
        v.square().mean().backward()
    return v.detach(), [tensor.grad for tensor in one.weights.tensors("policy").values()]


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.detach() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", [name for name in FAMILIES if 0 in FAMILIES[name].sources])
def test_every_family_runs_in_half_precision(name: str) -> None:
    """Velocities and gradients near those of float32; masters and gradients are float32."""
    one, exact = half(name), filled(policy(name), 0.05)
    assert one.weights.half == torch.bfloat16
    assert exact.weights.half is None
    found, expected = asked(one), asked(exact)
    assert found[0].dtype == torch.float32
    assert far(found[0], expected[0]) < 0.05
    assert [each is None for each in found[1]] == [each is None for each in expected[1]]
    ours, theirs = (torch.cat([g.flatten() for g in each if g is not None]) for each in (found[1], expected[1]))
    assert ours.dtype == torch.float32
    assert far(ours, theirs) < 0.1
    assert {tensor.dtype for tensor in one.weights.tensors("policy").values()} == {torch.float32}


def test_no_pass_of_a_half_network_runs_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    one, seen, real = half(), [], Adapted.forward

    def watched(self: Adapted, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), x.dtype))
        return real(self, x, *args, **kwargs)

    monkeypatch.setattr(Adapted, "forward", watched)
    asked(one)
    assert set(seen) == {(False, torch.bfloat16)}


@pytest.mark.parametrize("groups", [[[0], [1]], [[0, 1]], [[1, 0]]])
@pytest.mark.parametrize("scale", [2.0, 0.5, 1.0, 3.0])
def test_working_copies_are_rounded_once_and_give_exact_gradients_back(scale: float, groups: list[list[int]]) -> None:
    """A is scaled before it is rounded. The gradients are those that a cast per tensor gives, to the bit."""
    random = torch.Generator().manual_seed(0)
    masters = [nn.Parameter(torch.randn(3, 5, generator=random)) for _ in range(4)]
    parts = working(masters, torch.bfloat16, scale, True, groups)
    made = [tensor for common, place, b in parts for tensor in (common.a.chunk(common.layers)[place], b)]
    for number, (own, master) in enumerate(zip(made, masters, strict=True)):
        assert torch.equal(own, (master * (scale if number % 2 == 0 else 1)).bfloat16())
    slopes = [torch.randn(3, 5, generator=random).bfloat16() for _ in range(3)]
    torch.autograd.backward(made[:3], slopes)
    for number, (master, slope) in enumerate(zip(masters, slopes, strict=False)):
        assert torch.equal(master.grad, slope.float() * (scale if number % 2 == 0 else 1))  # type: ignore[arg-type]
    assert masters[3].grad is None  # it was not used: no optimiser step, no decay
    still = working(masters, torch.bfloat16, scale, False, groups)
    assert not any(tensor.requires_grad for common, _, b in still for tensor in (common.a, b))


def test_gradients_of_several_passes_add_up_in_float32() -> None:
    one = half()
    first = [g.clone() for g in asked(one)[1] if g is not None]
    second = [g for g in asked(one)[1] if g is not None]
    for once, twice in zip(first, second, strict=True):
        assert torch.equal(2 * once, twice)


def test_a_pass_sees_the_step_before_it_and_copies_keep_their_own() -> None:
    one = half()
    one.weights.add("old")
    before, _ = asked(one)
    with torch.no_grad():
        for tensor in one.weights.tensors("policy").values():
            tensor.add_(0.1)
    after, _ = asked(one)
    assert not torch.equal(before, after)
    assert torch.equal(asked(one, "old")[0], before)
    with torch.no_grad():
        assert torch.equal(asked(one)[0], after)
        with one.weights.still("policy"):
            assert torch.equal(asked(one)[0], after)
    assert not torch.equal(asked(one, "reference")[0], after)


def test_a_pass_that_fails_leaves_the_weights_of_the_policy() -> None:
    one = half()
    one.weights.add("old")
    assert isinstance(one.weights, LoRA)
    asked(one)
    before = [layer.working for layer in one.weights._layers]
    with torch.no_grad(), pytest.raises(RuntimeError, match="amid"), one.weights.network("old"):
        raise RuntimeError("amid a pass")
    assert all(layer.working is own for layer, own in zip(one.weights._layers, before, strict=True))


def test_checkpointed_blocks_have_the_same_gradients() -> None:
    """They are computed again in the backward pass, here after an anchor with other adapters."""
    found = []
    for checkpointed in (False, True):
        one = half()
        one.weights.add("old")
        for tensor in one.weights.tensors("old").values():
            tensor.data.mul_(2)
        if checkpointed:
            one.family.pipe.transformer.enable_gradient_checkpointing()
        one.family.pipe.transformer.train(checkpointed)
        x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
        t, condition = torch.tensor([0.3, 0.8]), one.encode(["a cat", "dog"])
        v = one.velocity(x, t, condition)
        with torch.no_grad():
            one.velocity(x, t, condition, "old")
        v.square().mean().backward()
        found.append([each.grad for each in one.weights.tensors("policy").values() if each.grad is not None])
    for plain, again in zip(*found, strict=True):
        assert torch.equal(plain, again)


@pytest.mark.parametrize("name", [name for name in FAMILIES if 0 in FAMILIES[name].sources])
def test_checkpointing_of_every_family_changes_nothing(name: str) -> None:
    if name == "LongCatAudioDiTPipeline":
        pytest.skip("its transformer has no gradient checkpointing, and the option is refused")
    found = []
    for checkpointed in (False, True):
        one = filled(policy(name), 0.05)
        if checkpointed:
            one.family.pipe.transformer.enable_gradient_checkpointing()
        one.family.pipe.transformer.train(checkpointed)
        v, gradients = asked(one)
        found.append(torch.cat([v.flatten(), *[each.flatten() for each in gradients if each is not None]]))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-5)


def test_merged_adapters_err_no_more_than_those_beside_their_layers() -> None:
    """Both against float32; the effect of the adapters, which is what merging might lose."""
    one, exact = half(rank=8, std=0.1), filled(policy(SD3, 8), 0.1)
    assert isinstance(one.weights, LoRA)
    effect = asked(exact)[0] - asked(exact, "reference")[0]
    base = asked(one, "reference")[0]
    with torch.no_grad():
        beside = asked(one)[0] - base
        one.weights.merge = True
        with one.weights.still("policy"):
            merged = asked(one)[0] - base
    assert far(merged, effect) < 1.2 * far(beside, effect) < 0.3
    kept = {tensor.dtype for tensor in one.family.pipe.transformer.parameters()}
    assert kept == {torch.bfloat16, torch.float32}  # the masters


def test_compiled_blocks_of_half_networks_share_their_graphs_among_copies() -> None:
    torch._dynamo.reset()
    one = half()
    one.weights.add("old")
    expected = asked(one)[0], asked(one, "old")[0]
    compile_blocks(one.family.network, "eager")
    found = asked(one)[0]
    with torch.no_grad():
        asked(one)
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    others = asked(one, "old")[0]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == before > 0
    for one_of, other in zip((found, others), expected, strict=True):
        torch.testing.assert_close(one_of, other, rtol=0, atol=2e-2)


@pytest.mark.parametrize("affine", [True, False])
def test_fused_norms_are_those_of_diffusers(affine: bool) -> None:
    """In float32, values and gradients; in bf16 they lie nearer to the exact value."""
    plain = RMSNorm(16, eps=1e-6, elementwise_affine=affine)
    if affine:
        nn.init.normal_(plain.weight)
    network = nn.Sequential(RMSNorm(16, eps=1e-6, elementwise_affine=affine))
    network.load_state_dict({f"0.{key}": value for key, value in plain.state_dict().items()})
    norms.fuse(network)
    assert type(network[0]) is norms.FusedRMSNorm
    x = torch.randn(3, 5, 16, generator=torch.Generator().manual_seed(0))
    found = []
    for one in (plain, network):
        given = x.clone().requires_grad_()
        one(given).square().sum().backward()
        found.append((one(given).detach(), given.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)
    rounded = [one.bfloat16()(x.bfloat16()).float() for one in (plain, network)]
    assert rounded[0].dtype == rounded[1].dtype
    assert far(rounded[1], found[0][0]) <= far(rounded[0], found[0][0]) * 1.05


def test_norms_of_another_dtype_than_their_input_stay_as_they_are() -> None:
    """As under autocast: bf16 goes in, and the weight is float32."""
    plain, network = RMSNorm(16, eps=1e-6), nn.Sequential(RMSNorm(16, eps=1e-6))
    norms.fuse(network)
    x = torch.randn(2, 16).bfloat16()
    assert torch.equal(plain(x), network(x))
    assert plain(x).dtype == network(x).dtype == torch.float32


def test_a_run_in_half_precision_learns_as_one_in_float32() -> None:
    """One optimiser step with the same data moves the adapters in nearly the same direction."""
    found = []
    for one in (half(), filled(policy(SD3), 0.05)):
        before = torch.cat([tensor.detach().flatten().clone() for tensor in one.weights.tensors("policy").values()])
        optimiser = torch.optim.SGD(one.weights.tensors("policy").values(), 1.0)
        asked(one)
        optimiser.step()
        after = torch.cat([tensor.detach().flatten() for tensor in one.weights.tensors("policy").values()])
        found.append(after - before)
    assert float(torch.nn.functional.cosine_similarity(*found, dim=0)) > 0.99


def test_drawn_samples_are_near_those_of_float32() -> None:
    one, exact = half(), filled(policy(SD3), 0.05)
    x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    texts = ["a cat", "dog"]
    assert far(model.drawn(one, texts, x, 2.0), model.drawn(exact, texts, x, 2.0)) < 0.05
