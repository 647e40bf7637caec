"""A model of diffusers held to its own pipeline: the same samples, the same adapters, and nothing else touched."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..algorithms import AdvantageFlow, FlowGRPO
from ..export import lora
from ..models.diffusers import DiffusersPolicy
from ..models.weights import LoRA
from ..plans import Chain
from ..points import Renoise
from ..prompts import of
from ..rollout import Sampler
from ..run import Run
from ..solvers import euler
from ..streams import Noise
from ..trainer import Trainer
from .check import Check, compared, number

TEXTS = ("a red circle", "a photo of two green squares on the left of a dog", "a", "three blue cats")
STEPS = 4
PIPELINE = "its pipeline in diffusers"
TOLERANCE = 1e-4  # of latents, in float32


def laws(policy: DiffusersPolicy, guidance: float = 3.5, texts: Sequence[str] = TEXTS) -> Iterator[Check]:
    """Everything that flowward assumes of a model. The policy must have adapters, and ends with none.

    Raises:
        ValueError: it has none.
    """
    if not isinstance(policy.weights, LoRA):
        raise ValueError("a model is verified with adapters: give it a lora_rank")
    name = type(policy.family.pipe).__name__
    checks = [*_samples(policy, guidance, texts), *_training(policy, texts), *_export(policy, guidance, texts)]
    yield from (replace(check, algorithm=name, part="protocol") for check in checks)


def _start(policy: DiffusersPolicy, texts: Sequence[str]) -> Tensor:
    keys = tuple(("verify", number) for number in range(len(texts)))
    return Noise(policy.latent_shape, keys, policy.device).start()


@torch.no_grad()
def drawn(policy: DiffusersPolicy, texts: Sequence[str], x: Tensor, guidance: float, weights: str = "policy") -> Tensor:
    """Euler on the model's own grid."""
    velocity, condition = policy.under(weights, guidance), policy.encode(list(texts))

    def field(x: Tensor, t: float) -> Tensor:
        return velocity(x, torch.full((len(x),), t, device=x.device), condition)

    return euler(field, x, policy.times(STEPS), Noise((), ()).step)


def _samples(policy: DiffusersPolicy, guidance: float, texts: Sequence[str]) -> Iterator[Check]:
    x = _start(policy, texts)
    scales = [1.0] if policy.family.guidance == "none" else [1.0, guidance]
    for scale in scales:
        found = drawn(policy, texts, x, scale, "reference")
        expected = policy.family.reference(list(texts), x, STEPS, scale)
        law = f"samples by Euler on its own grid, guidance {scale:g}"
        yield compared(law, PIPELINE, found, expected, TOLERANCE)
    one = torch.cat([drawn(policy, texts[k : k + 1], x[k : k + 1], scale, "reference") for k in range(len(texts))])
    yield compared(f"{len(texts)} batches of 1 are one batch of {len(texts)}", "", one, found, TOLERANCE)
    t, condition = torch.full((len(x),), 0.5, device=x.device), policy.encode(list(texts))
    with torch.no_grad():
        first, second = (policy.velocity(x, t, condition) for _ in range(2))
    yield number(
        "a velocity that is asked for twice, largest difference", "", (first - second).abs().max().item(), 0, 0
    )
    other = policy.encode(list(reversed(texts)))
    with torch.no_grad():
        moved = (policy.velocity(x, t, other) - first).abs().max().item()
    yield number("another prompt gives another velocity (1: yes)", "", float(moved > 0), 1, 0)
    images = policy.decode(found)
    outside = float((images < 0).sum() + (images > 1).sum() + (~images.isfinite()).sum())
    yield number("values of decoded images outside [0, 1]", "", outside, 0, 0)
    back = policy.encode_images(images)
    yield number("an image's samples have the shape of samples (1: yes)", "", float(back.shape == x.shape), 1, 0)


def _bright(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.flatten(1).mean(1)


def _training(policy: DiffusersPolicy, texts: Sequence[str]) -> Iterator[Check]:
    """One iteration of each family of algorithms."""
    run = Run(
        iterations=1, images_per_update=4, group_size=2, microbatch=2, rollout_batch=4, learning_rate=1e-2, warmup=0
    )
    grid: dict[str, Any] = {"steps": 3, "grid": "model"}
    algorithms = (
        AdvantageFlow(rollout=Sampler(**grid), points=Renoise(1)),
        FlowGRPO(rollout=Chain(**grid), beta=0.0, clip=1e-3),
    )
    for algorithm in algorithms:
        before = _state(policy)
        step = Trainer(algorithm, policy, _bright, of("verify", list(texts)), run).step()
        changed = {
            key for key, tensor in _state(policy).items() if key in before and not torch.equal(tensor, before[key])
        }
        name, adapters = type(algorithm).__name__, {key for key in changed if ".lora_" in key}
        yield number(f"an iteration of {name}: base weights that changed", "", len(changed - adapters), 0, 0)
        yield number(f"an iteration of {name}: its adapters changed (1: yes)", "", float(bool(adapters)), 1, 0)
        norm = step.metrics["gradient_norm"]
        yield number(f"an iteration of {name}: its gradient is not 0 (1: yes)", "", float(norm > 0), 1, 0)


def _state(policy: DiffusersPolicy) -> dict[str, Tensor]:
    parts = {**policy.family.transformers, "vae": policy.family.pipe.vae}
    return {
        f"{part}.{key}": tensor.clone() for part, module in parts.items() for key, tensor in module.state_dict().items()
    }


def _export(policy: DiffusersPolicy, guidance: float, texts: Sequence[str]) -> Iterator[Check]:
    """Adapters that were trained here, read by the pipeline. They are taken off on the way."""
    scale = 1.0 if policy.family.guidance == "none" else guidance
    pipe, x = policy.family.pipe, _start(policy, texts)
    before, found = drawn(policy, texts, x, scale, "reference"), drawn(policy, texts, x, scale)
    yield number("trained adapters change samples (1: yes)", "", float((found - before).abs().max() > 0), 1, 0)
    with tempfile.TemporaryDirectory() as folder:
        lora(policy, Path(folder))
        with warnings.catch_warnings(action="ignore"):  # that the active one goes
            policy.family.network.delete_adapters(list(policy.family.network.peft_config))
        policy.family.load_lora(Path(folder))
        expected = policy.family.reference(list(texts), x, STEPS, scale)
        pipe.unload_lora_weights()
    yield compared("samples under exported adapters, loaded by load_lora_weights", PIPELINE, found, expected, TOLERANCE)
