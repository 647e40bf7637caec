"""Compare a diffusers model with its own pipeline: same samples, same adapters, and no other weights changed."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..algorithms import AdvantageFlow, FlowGRPO, MeanFlowAdvantage
from ..algorithms.algorithm import Algorithm
from ..export.weights import lora
from ..learning.jumps import RenoiseJumps
from ..learning.points import Renoise
from ..models.diffusers import DiffusersPolicy
from ..models.lora import LoRA
from ..process.noise import Noise
from ..process.plans import Chain
from ..process.policy import Policy
from ..process.rollout import Sampler
from ..process.solvers import euler, jump
from ..prompts import Prompt, of, prompt_of, sources_of, text_of
from ..system.seeds import numpy_generator
from ..training.run import Run
from ..training.trainer import Trainer
from .check import Check, compared, number

TEXTS = ("a red circle", "a photo of two green squares on the left of a dog", "a", "three blue cats")
STEPS = 4
PIPELINE = "its diffusers pipeline"
TOLERANCE = 1e-4  # relative, of float32 latents


def laws(policy: DiffusersPolicy, guidance: float = 3.5) -> Iterator[Check]:
    """Check everything that flowward assumes about a model. The policy needs adapters; they are removed at the end.

    Raises:
        ValueError: it has no adapters.
    """
    if not isinstance(policy.weights, LoRA):
        raise ValueError("verification needs LoRA adapters: load the model with a lora_rank")
    name = type(policy.family.pipe).__name__
    with tempfile.TemporaryDirectory() as folder:
        asked = asked_of(policy, TEXTS, Path(folder))
        checks = [*_samples(policy, guidance, asked), *_training(policy, asked), *_export(policy, guidance, asked)]
    yield from (replace(check, algorithm=name, part="protocol") for check in checks)


def asked_of(policy: Policy, texts: Sequence[str], folder: Path) -> list[Prompt]:
    """Each text with random images, saved to a folder, so that the prompts have all numbers of sources up to 3.

    The images differ in size.
    """
    few = [many for many in policy.sources if many <= 3]
    found = []
    for k, text in enumerate(texts):
        paths = []
        for place in range(few[k % len(few)]):
            pixels = numpy_generator("verify", k, place).integers(0, 256, (48 + 8 * k, 64, 3), dtype="uint8")
            Image.fromarray(pixels).save(path := folder / f"{k}-{place}.png")
            paths.append(path)
        found.append(prompt_of(text, paths))
    return found


def _start(policy: DiffusersPolicy, prompts: Sequence[Prompt]) -> Tensor:
    keys = tuple(("verify", number) for number in range(len(prompts)))
    return Noise(policy.latent_shape, keys, policy.device).start()


@torch.no_grad()
def drawn(
    policy: DiffusersPolicy, prompts: Sequence[Prompt], x: Tensor, guidance: float, weights: str = "policy"
) -> Tensor:
    """Samples by Euler steps on the model's own time grid."""
    velocity, condition = policy.under(weights, guidance), policy.encode(list(prompts))

    def field(x: Tensor, t: float, s: float | None = None) -> Tensor:
        rows = condition if s is None else condition.until(torch.full((len(x),), s, device=x.device))
        return velocity(x, torch.full((len(x),), t, device=x.device), rows)

    if policy.two_times:
        return jump(field, x, policy.times(STEPS), Noise((), ()).step)
    return euler(field, x, policy.times(STEPS), Noise((), ()).step)


def _samples(policy: DiffusersPolicy, guidance: float, prompts: Sequence[Prompt]) -> Iterator[Check]:
    x = _start(policy, prompts)
    scales = [1.0] if policy.family.guidance == "none" else [1.0, guidance]
    for scale in scales:
        found = drawn(policy, prompts, x, scale, "reference")
        expected = policy.family.reference(list(prompts), x, STEPS, scale)
        law = f"samples by Euler steps on its own time grid, guidance {scale:g}"
        yield compared(law, PIPELINE, found, expected, TOLERANCE)
    one = torch.cat([drawn(policy, prompts[k : k + 1], x[k : k + 1], scale, "reference") for k in range(len(prompts))])
    yield compared(f"{len(prompts)} batches of 1 equal one batch of {len(prompts)}", "", one, found, TOLERANCE)
    t, condition = torch.full((len(x),), 0.5, device=x.device), policy.encode(list(prompts))
    with torch.no_grad():
        first, second = (policy.velocity(x, t, condition) for _ in range(2))
    law = "largest difference between two evaluations of a velocity"
    yield number(law, "", (first - second).abs().max().item(), 0, 0)
    own, texts = list(map(sources_of, prompts)), list(map(text_of, prompts))
    others = {"prompt": [prompt_of(*each) for each in zip(reversed(texts), own, strict=True)]}
    if any(own):
        others["source of the same prompt"] = list(map(prompt_of, texts, [*own[1:], own[0]]))
    if any(len(each) > 1 for each in own):
        others["order of the sources"] = [prompt_of(*each) for each in zip(texts, (s[::-1] for s in own), strict=True)]
    for what, other in others.items():
        with torch.no_grad():
            moved = (policy.velocity(x, t, policy.encode(other)) - first).abs().max().item()
        yield number(f"changing the {what} changes the velocity (1: yes)", "", float(moved > 0), 1, 0)
    images = policy.decode(found)
    low, high = policy.medium.bounds
    outside = float((images < low).sum() + (images > high).sum() + (~images.isfinite()).sum())
    yield number(f"values of decoded {policy.medium.noun} outside [{low:g}, {high:g}]", "", outside, 0, 0)
    back = policy.encode_images(images)
    yield number(
        f"encoded {policy.medium.noun} have the shape of samples (1: yes)", "", float(back.shape == x.shape), 1, 0
    )


def _bright(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.flatten(1).mean(1)


def _training(policy: DiffusersPolicy, prompts: Sequence[Prompt]) -> Iterator[Check]:
    """One iteration of each family of algorithms."""
    run = Run(
        iterations=1, images_per_update=4, group_size=2, microbatch=2, rollout_batch=4, learning_rate=1e-2, warmup=0
    )
    grid: dict[str, Any] = {"steps": 3, "grid": "model"}
    forward: Algorithm = AdvantageFlow(rollout=Sampler(**grid), points=Renoise(1))
    if policy.two_times:
        forward = MeanFlowAdvantage(rollout=Sampler(**grid, solver="jump"), points=RenoiseJumps(1))
    algorithms = (forward, FlowGRPO(rollout=Chain(**grid), beta=0.0, clip=1e-3))
    for algorithm in algorithms:
        before = _state(policy)
        step = Trainer(algorithm, policy, _bright, of("verify", list(prompts)), run).step()
        changed = {
            key for key, tensor in _state(policy).items() if key in before and not torch.equal(tensor, before[key])
        }
        name, adapters = type(algorithm).__name__, {key for key in changed if ".lora_" in key}
        yield number(f"after an iteration of {name}: base weights that changed", "", len(changed - adapters), 0, 0)
        yield number(f"after an iteration of {name}: adapters changed (1: yes)", "", float(bool(adapters)), 1, 0)
        norm = step.metrics["gradient_norm"]
        yield number(f"in an iteration of {name}: gradient is not 0 (1: yes)", "", float(norm > 0), 1, 0)


def _state(policy: DiffusersPolicy) -> dict[str, Tensor]:
    parts = {**policy.family.transformers, "vae": policy.family.pipe.vae}
    return {
        f"{part}.{key}": tensor.clone() for part, module in parts.items() for key, tensor in module.state_dict().items()
    }


def _export(policy: DiffusersPolicy, guidance: float, prompts: Sequence[Prompt]) -> Iterator[Check]:
    """Export the trained adapters and load them with the pipeline. The policy's own adapters are removed."""
    scale = 1.0 if policy.family.guidance == "none" else guidance
    x = _start(policy, prompts)
    before, found = drawn(policy, prompts, x, scale, "reference"), drawn(policy, prompts, x, scale)
    yield number("trained adapters change samples (1: yes)", "", float((found - before).abs().max() > 0), 1, 0)
    with tempfile.TemporaryDirectory() as folder:
        lora(policy, Path(folder))
        with warnings.catch_warnings(action="ignore"):  # peft warns about deleting the active adapter
            policy.family.network.delete_adapters(list(policy.family.network.peft_config))
        policy.family.load_lora(Path(folder))
        expected = policy.family.reference(list(prompts), x, STEPS, scale)
        for part in policy.family.transformers.values():
            part.unload_lora()
    law = f"samples with exported adapters, loaded by {policy.lora_loader[0]}"
    yield compared(law, PIPELINE, found, expected, TOLERANCE)
