"""Policies of the tiny built-in model, their inputs and velocities, and a change of their weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from flowward import models
from flowward.process.policy import Policy

TEXTS = ["a circle", "a red square", "two rings", "a cross above a ring"]
kinds = pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])


def load(tiny: str, rank: int | None = None) -> Policy:
    policy = models.load(tiny, rank, "float32")
    for name in ("old", "ema", "reference"):
        policy.weights.add(name)
    return policy


def inputs(policy: Policy, count: int = 4) -> tuple[Tensor, Tensor, Any]:
    x = torch.randn(count, *policy.latent_shape, generator=torch.Generator().manual_seed(3))
    return x, torch.linspace(0.05, 1, count), policy.encode([TEXTS[k % 4] for k in range(count)])


@torch.no_grad()
def look(policy: Policy, weights: str = "policy") -> Tensor:
    return policy.velocity(*inputs(policy), weights)


@torch.no_grad()
def move(policy: Policy, name: str = "policy", by: float = 0.05) -> None:
    for tensor in policy.weights.tensors(name).values():
        tensor.add_(by)
