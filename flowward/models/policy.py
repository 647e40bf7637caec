"""What every model looks like to the rest of the library: a velocity in flowward's convention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from .weights import Weights

Precision = Literal["bf16", "float32"]


@dataclass(frozen=True)
class Condition:
    """Encoded prompts: named tensors [N, ...], one row per prompt."""

    tensors: dict[str, Tensor]

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __getitem__(self, index: Tensor | slice) -> Condition:
        return Condition({name: tensor[index] for name, tensor in self.tensors.items()})


Velocity = Callable[[Tensor, Tensor, Condition], Tensor]  # x [B, ...], t [B], condition of B rows -> v [B, ...]


class Policy(ABC):
    """A flow model with the weights that training needs: `policy`, its named copies, and `reference`."""

    name: str  # what `load` was asked for
    identity: dict[str, Any]  # what a checkpoint must agree with: architecture, kind of weights, rank
    latent_shape: tuple[int, ...]  # of one sample
    weights: Weights
    precision: Precision
    device: torch.device

    @abstractmethod
    def encode(self, prompts: list[str]) -> Condition:
        """Encode prompts, one row each (call it once per distinct prompt).

        Raises:
            ValueError: the model cannot read a prompt.
        """

    @abstractmethod
    def velocity(self, x: Tensor, t: Tensor, condition: Condition, weights: str = "policy") -> Tensor:
        """v = E[eps - x0 | x_t], float32 [B, ...], from x [B, ...] and t [B] in [0, 1], under the named weights.

        Gradients flow for `policy` (unless the caller forbids them) and never for the others.
        """

    @abstractmethod
    def decode(self, x0: Tensor) -> Tensor:
        """Finished samples [B, ...] to images, float32 [B, 3, H, W] in [0, 1]."""

    def under(self, weights: str) -> Velocity:
        """The velocity under one set of weights, as a plain function."""
        return lambda x, t, condition: self.velocity(x, t, condition, weights)


@dataclass(frozen=True)
class Models:
    """The velocities that a loss may ask for. `old` and `reference` never carry gradients."""

    policy: Velocity
    old: Velocity
    reference: Velocity

    @classmethod
    def of(cls, policy: Policy) -> Models:
        return cls(policy.under("policy"), policy.under("old"), policy.under("reference"))
