"""Which layers get adapters, and how much adapters count: what published runs have."""

from __future__ import annotations

import pytest
import torch
from built_in_policies import move
from lora_layouts import answer, merge
from tiny_policies import policy

from flowward import models
from flowward.models import Adapters, targets
from flowward.models.lora import ATTENTION, LoRA
from flowward.process.policy import Policy
from flowward.verify import model

FLUX = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2")  # of Flow-GRPO


def layers(one: Policy) -> set[str]:
    return {name.rpartition(".lora_")[0] for name in one.weights.tensors("policy")}


def test_feed_forward_layers_are_trained_too() -> None:
    before = layers(policy("FluxPipeline"))
    one = policy("FluxPipeline", Adapters(2, targets=FLUX))
    more = {"ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"}
    assert layers(one) - before == {f"transformer_blocks.0.{name}" for name in more}
    assert before < layers(one)
    assert "layers" in one.identity and "layers" not in policy("FluxPipeline").identity


@pytest.mark.parametrize("layers", [FLUX, ("^proj_out", "^transformer_blocks.0.attn.to_q")])
def test_diffusers_loads_them_with_their_scale(layers: tuple[str, ...]) -> None:
    one = policy("FluxPipeline", Adapters(2, alpha=3, targets=layers))
    assert not [f"{check.law}: {check.measured}" for check in model.laws(one) if not check.holds]


@pytest.mark.parametrize(
    ("alpha", "scale", "kind"), [(None, 2.0, "lora-4"), (4.0, 1.0, "lora-4-alpha-4"), (1.0, 0.25, "lora-4-alpha-1")]
)
def test_alpha_over_rank_is_the_scale(tiny: str, alpha: float | None, scale: float, kind: str) -> None:
    one, other = models.load(tiny, precision="float32", adapters=Adapters(4, alpha)), models.load(tiny, None, "float32")
    move(one, by=0.1)
    mine = one.weights.tensors("policy")
    with other.weights.network("policy") as network:
        merge(
            network,
            {name: (mine[f"{name}.lora_A.weight"], mine[f"{name}.lora_B.weight"]) for name in layers(one)},
            scale,
        )
    torch.testing.assert_close(answer(one), answer(other), rtol=0, atol=1e-4)
    assert one.identity["weights"] == kind


def test_a_rank_is_the_same_as_adapters_of_this_rank(tiny: str) -> None:
    one, other = models.load(tiny, 2, "float32"), models.load(tiny, precision="float32", adapters=Adapters(2))
    assert one.identity == other.identity
    assert all(
        torch.equal(a, b)
        for a, b in zip(one.weights.tensors("policy").values(), other.weights.tensors("policy").values(), strict=True)
    )
    with pytest.raises(ValueError, match="give lora_rank or adapters, not both"):
        models.load(tiny, 2, adapters=Adapters(2))


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("to_qq", "has no linear layer 'to_qq' for LoRA adapters; did you mean to_q"),
        ("ff.nett.2", "did you mean ff.net.2"),
        ("attn", "did you mean attn.to_"),
        ("pos_embed.proj", "has no linear layer 'pos_embed.proj'"),  # a convolution
        ("q", "has no linear layer 'q'"),  # the end of a name begins after a dot
        ("xyzzyxyzzyxyzzy", "the layers are attn.add_k_proj, attn.add_q_proj"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused_with_similar_names(tiny: str, target: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        models.load(tiny, precision="float32", adapters=Adapters(2, targets=("to_k", target)))


def test_a_convolution_of_the_same_name_gets_no_adapter(tiny: str) -> None:
    one = models.load(tiny, precision="float32", adapters=Adapters(2, targets=("proj",)))
    assert layers(one) == {
        f"transformer_blocks.{block}.{net}.net.0.proj" for block, net in ((0, "ff"), (1, "ff"), (0, "ff_context"))
    }
    assert isinstance(one.weights, LoRA) and one.weights.adapters.targets == ("ff.net.0.proj", "ff_context.net.0.proj")


def test_names_of_layers_are_as_short_as_they_can_be() -> None:
    network = policy("FluxPipeline", None).family.pipe.transformer
    every = list(targets.linear(network))
    assert targets.named(network, [name for name in every if name.endswith(".to_q")]) == ("attn.to_q",)
    only = ["transformer_blocks.0.attn.to_q", "proj_out"]
    assert targets.named(network, only) == ("^proj_out", "^transformer_blocks.0.attn.to_q")
    assert [*targets.chosen(network, targets.named(network, only))] == [name for name in every if name in only]
