"""Models that diffusers runs, from a folder or the hub, as a Policy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import unknown
from ..precision import Precision, autocast
from .families import FAMILIES, Family
from .policy import Condition, Policy, Velocity
from .weights import Full, LoRA


class DiffusersPolicy(Policy):
    """A pipeline of diffusers. Everything that differs between models is in its family."""

    def __init__(self, name: str, family: Family, lora_rank: int | None, precision: Precision, seed: int = 0):
        self.name, self.family, self.precision = name, family, precision
        pipe = family.pipe
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.requires_grad_(False).eval()
        transformer = pipe.transformer
        self.device = next(transformer.parameters()).device
        self.latent_shape, self.image_size = family.shape, (family.height, family.width)
        described = json.loads(transformer.to_json_string())
        architecture = {key: value for key, value in described.items() if not key.startswith("_")}
        self.identity = {
            "family": type(family).__name__,
            "base": fingerprint(transformer),
            "transformer": architecture,
            "shape": list(family.shape),
        }
        self.weights = (
            Full(transformer) if lora_rank is None else LoRA(transformer, lora_rank, targets=family.targets, seed=seed)
        )
        self.identity["weights"] = self.weights.kind

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> Condition:
        return self._on_device(self.family.encode(prompts))

    @torch.no_grad()
    def empty(self) -> Condition:
        return self._on_device(self.family.empty())

    def _on_device(self, tensors: dict[str, Tensor]) -> Condition:
        return Condition({name: tensor.to(self.device) for name, tensor in tensors.items()})

    def times(self, steps: int) -> tuple[float, ...]:
        return self.family.times(steps)

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        return self._velocity(x, t, condition, weights, 1.0)

    def _velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str, guidance: float) -> Tensor:
        gradients = torch.is_grad_enabled() and weights == "policy"
        with torch.set_grad_enabled(gradients), self._cast(), self.weights.network(weights) as network:
            return self.family.velocity(network, x, t, condition.tensors, guidance).float()

    def under(self, weights: str, guidance: float = 1.0) -> Velocity:
        """As the model has it: classifier-free guidance, guidance as an input of the network, or none.

        Raises:
            ValueError: the model was distilled without guidance, and a scale was asked for.
        """
        match self.family.guidance:
            case "classifier-free":
                return super().under(weights, guidance)
            case "embedded":
                return lambda x, t, condition: self._velocity(x, t, condition, weights, guidance)
            case "none":
                if guidance != 1:
                    raise ValueError(f"{self.name} was distilled and knows no guidance: leave the scale at 1")
                return super().under(weights)

    def guided(self, v: Tensor, v_0: Tensor, scale: float) -> Tensor:
        return self.family.guided(v, v_0, scale)

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        with self._cast():
            images = self.family.decode(x0)
        return (images.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        return self.family.encode_images(images.float() * 2 - 1)

    def _cast(self) -> torch.autocast:
        return autocast(self.precision, self.device.type)


def fingerprint(network: torch.nn.Module) -> str:
    """A short hash of the weights: of every tensor's name, shape and first numbers, so that it takes no time."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.flatten()[:8].float().tolist()}".encode())
    return digest.hexdigest()[:16]


def load(
    name_or_path: str,
    lora_rank: int | None = None,
    precision: Precision = "float32",
    seed: int = 0,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    text_tokens: int | None = None,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "cpu",
) -> DiffusersPolicy:
    """A pipeline by the id of the hub or the name of a folder.

    Raises:
        ValueError: it cannot be found or read, or it is of no known family.
    """
    import diffusers

    index = Path(name_or_path) / "model_index.json"
    if index.is_file():
        kind = json.loads(index.read_text()).get("_class_name")
        if kind not in FAMILIES:
            raise ValueError(unknown("pipeline", str(kind), FAMILIES))
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        name_or_path, revision=revision, variant=variant, torch_dtype=dtype, trust_remote_code=False
    )
    kind = type(pipe).__name__
    if kind not in FAMILIES:
        raise ValueError(unknown("pipeline", kind, FAMILIES))
    given: dict[str, Any] = {"text_tokens": text_tokens}
    if size:
        given["height"], given["width"] = size
    if frames:
        given["frames"] = frames
    return DiffusersPolicy(name_or_path, FAMILIES[kind](pipe.to(device), **given), lora_rank, precision, seed)
