"""What is lost if adapters are merged into bf16 weights, on blocks of published width.

    OMP_NUM_THREADS=1 python benchmarks/merged_adapters.py [sd3.5-medium] [flux.1-dev]

Two blocks of the model with random weights, LoRA of rank 32 on the attention projections, 256 image tokens. For several
sizes of B it prints the error of the adapters' effect (the velocity with them less the one without) against float32,
relative to that effect: adapters beside their layers under autocast (as it was), beside them without autocast (as in
training), and merged (rollouts). Then the same for each layer alone, on the input that it gets: the largest ratio of
the merged error to the other one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from full_size import FLUX, SD3
from tiny_pipelines import tiny

from flowward.models import norms
from flowward.models.adapted import Adapted
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES

SIZES = (3e-4, 3e-3, 2e-2)  # of B
RANK, SIDE = 32, 256
BLOCKS: dict[str, tuple[str, Any]] = {
    "sd3.5-medium": ("StableDiffusion3Pipeline", SD3 | {"num_layers": 2, "dual_attention_layers": (0,)}),
    "flux.1-dev": ("FluxPipeline", FLUX | {"num_layers": 1, "num_single_layers": 1, "guidance_embeds": True}),
}


def policy(name: str, dtype: torch.dtype) -> DiffusersPolicy:
    kind, size = BLOCKS[name]
    pipe = tiny(kind)
    wide = {key: size[key] for key in ("joint_attention_dim", "pooled_projection_dim")}
    given = dict(pipe.transformer.config) | size
    for key in wide:  # the texts are those of tiny encoders
        given[key] = pipe.transformer.config[key]
    if kind == "FluxPipeline":
        given |= {"attention_head_dim": 128, "num_attention_heads": 24, "axes_dims_rope": (16, 56, 56)}
    torch.manual_seed(0)
    known = {key: value for key, value in given.items() if not key.startswith("_")}
    pipe.transformer = getattr(diffusers, type(pipe.transformer).__name__)(**known).to(dtype)
    norms.fuse(pipe.transformer)
    return DiffusersPolicy(name, FAMILIES[kind](pipe, 32, 32), RANK, "float32" if dtype == torch.float32 else "bf16")


def filled(one: DiffusersPolicy, std: float) -> None:
    random = torch.Generator().manual_seed(1)
    for key, tensor in one.weights.tensors("policy").items():
        tensor.data.normal_(std=std if "lora_B" in key else 1 / RANK, generator=random)


@torch.no_grad()
def velocity(one: DiffusersPolicy, weights: str = "policy", still: bool = False) -> Tensor:
    x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    t, condition = torch.tensor([0.3, 0.8]), one.encode(["a cat", "two dog on the left"])
    if not still:
        return one.velocity(x, t, condition, weights)
    with one.weights.still(weights):
        return one.velocity(x, t, condition, weights)


def far(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@torch.no_grad()
def layers(one: DiffusersPolicy) -> float:
    """The largest ratio, over layers, of the merged output's error to that of the adapter beside its layer."""
    inputs: dict[str, tuple[Adapted, Tensor]] = {}
    named = {name: each for name, each in one.family.network.named_modules() if isinstance(each, Adapted)}
    hooks = [
        each.register_forward_pre_hook(lambda layer, given, name=name: inputs.update({name: (layer, given[0])}))
        for name, each in named.items()
    ]
    velocity(one)
    for hook in hooks:
        hook.remove()
    ratios = []
    with one.weights.network("policy"):
        for name, (layer, x) in inputs.items():
            base: Any = layer.get_base_layer()
            own = one.weights.tensors("policy")
            a, b = own[f"{name}.lora_A.weight"], own[f"{name}.lora_B.weight"]
            bias = None if base.bias is None else base.bias.float()
            exact = torch.nn.functional.linear(x.float(), base.weight.float() + 2 * b @ a, bias)
            merged = torch.nn.functional.linear(x, layer.whole(a, b), base.bias)
            ratios.append(far(merged, exact) / far(layer(x), exact))
    return max(ratios)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(BLOCKS), help="whose blocks (default: all)")
    print(f"{'model':14}{'std of B':>10}{'effect':>10}{'autocast':>10}{'beside':>10}{'merged':>10}{'per layer':>11}")
    for name in parser.parse_args().models:
        exact, half = policy(name, torch.float32), policy(name, torch.bfloat16)
        before, plain = velocity(exact, "reference"), velocity(half, "reference")
        for std in SIZES:
            filled(exact, std), filled(half, std)
            effect = velocity(exact) - before
            half.weights.merge = False  # type: ignore[attr-defined]
            beside = far(velocity(half) - plain, effect)
            half.weights.merge = True  # type: ignore[attr-defined]
            merged = far(velocity(half, still=True) - plain, effect)
            kept, half.weights.half = half.weights.half, None
            autocast = far(velocity(half) - velocity(half, "reference"), effect)
            half.weights.half = kept
            size = float(effect.norm() / before.norm())
            print(f"{name:14}{std:10.0e}{size:10.1e}{autocast:10.3f}{beside:10.3f}{merged:10.3f}{layers(half):11.2f}")


if __name__ == "__main__":
    main()
