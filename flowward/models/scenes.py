"""The built-in text-to-image models: diffusers' Stable Diffusion 3 transformer, small, on small latents."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..process.distilled import Sign
from ..process.policy import UNTIL, Condition, Policy, graphed
from ..prompts import Prompt, text_of
from ..scenes.attention import plain
from ..scenes.network import Networks
from ..scenes.two_times import TwoTimeTransformer
from ..system.precision import Precision, autocast
from . import gelu
from .adapters import Adapters
from .lora import trainable

SHIPPED = Path(str(files("flowward.scenes") / "weights"))
SHIPPED_4STEP = Path(str(files("flowward.scenes") / "weights_4step"))
SHIPPED_64 = Path(str(files("flowward.scenes") / "weights_64"))


FOLDERS = {"scenes": "SHIPPED", "scenes-4step": "SHIPPED_4STEP", "scenes-64": "SHIPPED_64"}  # of the built-in models


def folder_of(name: str) -> Path:
    """The folder of a built-in model, or the folder that `name` is."""
    return globals()[FOLDERS[name]] if name in FOLDERS else Path(name)


def networks_of(name: str) -> Networks:
    """The networks of a built-in model or of a folder in its layout.

    Raises:
        ValueError: they cannot be read, or are not in this version.
    """
    folder = folder_of(name)
    if name in FOLDERS and not folder.is_dir():
        raise ValueError(
            f"the weights of {name} are not in this version: make them with `flowward pretrain {name} --output FOLDER` "
            "(hours on a CPU), and give FOLDER/model"
        )
    try:
        return Networks.load(folder)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"cannot read the model in {folder}: {error}") from error


class ScenesPolicy(Policy):
    """A built-in model as a Policy: for `scenes`, latents are [B, 4, 8, 8] and images [B, 3, 32, 32]."""

    device = torch.device("cpu")

    def __init__(self, name: str, folder: Path, adapters: Adapters | int | None, precision: Precision, seed: int = 0):
        networks = networks_of(name if name in FOLDERS else str(folder))
        self.name, self.precision = name, precision
        shape, side = networks.transformer.config, networks.autoencoder.config.sample_size
        self.latent_shape = (shape.in_channels, shape.sample_size, shape.sample_size)
        self.image_size = (side, side)
        self._text_encoder = networks.text_encoder.requires_grad_(False)
        self._autoencoder = networks.autoencoder.requires_grad_(False)
        transformer = networks.transformer
        if precision == "float32":
            plain(transformer)
            gelu.quicken(transformer)
        self.two_times = isinstance(transformer, TwoTimeTransformer)
        described = json.loads(transformer.to_json_string())  # keys with "_" are a path and a version
        architecture = {key: value for key, value in described.items() if not key.startswith("_")}
        base = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
        self.identity = {"family": "scenes", "base": hashlib.sha256(base).hexdigest()[:16], "transformer": architecture}
        self.weights, self.notes = trainable(transformer, adapters, seed=seed)
        self.identity |= self.weights.identity()

    def distilled(self) -> tuple[Sign, ...]:
        here = "transformer/config.json"
        return (Sign("`TwoTimeTransformer`", here, "certain"),) if self.two_times else ()

    @torch.no_grad()
    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        words, pooled = self._text_encoder(self._tokens(prompts))
        return Condition({"words": words, "pooled": pooled})

    def refuse(self, prompts: Sequence[Prompt]) -> None:
        self._tokens(prompts)

    def _tokens(self, prompts: Sequence[Prompt]) -> Tensor:
        super().refuse(prompts)
        return self._text_encoder.tokenize([text_of(prompt) for prompt in prompts])

    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        gradients = graphed(x, weights)
        # In bf16 as in float32: with 24 tokens, fused attention on the CPU makes a training step 1.5 times slower
        # (docs/notes/speed.md). Rollouts use products too, so that equal weights give bit-identical velocities.
        attention = sdpa_kernel(SDPBackend.MATH)
        with torch.set_grad_enabled(gradients), self._cast(), attention, self.weights.network(weights) as network:
            self.weights.meet(condition.tensors)
            words, pooled = condition.tensors["words"], condition.tensors["pooled"]
            times = torch.stack([t, condition.tensors.get(UNTIL, t)], 1) if self.two_times else t
            v: Tensor = network(x, words, pooled, 1000 * times, return_dict=False)[0]
        return v.float()

    @torch.no_grad()
    def decode(self, x0: Tensor) -> Tensor:
        return self.decoded(x0)

    def decoded(self, x0: Tensor) -> Tensor:
        config = self._autoencoder.config
        with self._cast():
            x = self._autoencoder.decode(x0 / config.scaling_factor + config.shift_factor).sample
        return (x.float() / 2 + 0.5).clamp(0, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        config = self._autoencoder.config
        z: Tensor = self._autoencoder.encode(images.float() * 2 - 1).latent_dist.mean
        return (z - config.shift_factor) * config.scaling_factor

    def _cast(self) -> torch.autocast:
        return autocast(self.precision)
