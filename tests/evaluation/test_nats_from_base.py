"""KL from the base model, against two Gaussians whose KL is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward.evaluation.nats import from_reference
from flowward.process.policy import Condition
from flowward.process.rollout import Sampler

FAR = torch.tensor([0.6, -0.3, 0.2, 0.5]).view(1, 2, 2)


class Gaussians:
    """The policy draws N(m, I), the reference N(0, I)."""

    name, latent_shape, device, two_times = "gaussians", (1, 2, 2), torch.device("cpu"), False
    medium = SimpleNamespace(size=4)

    def encode(self, prompts: Any) -> Condition:
        return Condition({"id": torch.arange(len(prompts))})

    def times(self, steps: int) -> tuple[float, ...]:
        return tuple(torch.linspace(1, 0, steps + 1).tolist())

    def velocity(self, x: Tensor, t: Tensor, condition: Any, weights: str = "policy") -> Tensor:
        m = FAR if weights == "policy" else torch.zeros_like(FAR)
        at = t.view(-1, 1, 1, 1)
        s = (1 - at) ** 2 + at**2
        off = x - (1 - at) * m
        return at / s * off - (m + (1 - at) / s * off)

    def under(self, weights: str, guidance: float) -> Any:
        return lambda x, t, condition: self.velocity(x, t, condition, weights)


def kl(**changes: Any) -> Tensor | None:
    given = {"points": 8} | changes
    sampler = Sampler(steps=40, guidance=given.pop("guidance", 1.0))
    return from_reference(Gaussians(), ["a", "b"] * 150, sampler, 1, **given)  # type: ignore[arg-type]


def test_it_is_the_kl_of_two_gaussians() -> None:
    """|m|^2 / 2, but for the part of the integral below t = 0.05 and the rule's error."""
    found = kl(points=64)
    assert found is not None and found.shape == (300,)
    assert found.mean().item() == pytest.approx(FAR.square().sum().item() / 2, rel=0.01)


def test_eight_times_are_enough() -> None:
    few, many = kl(), kl(points=64)
    assert few is not None and many is not None
    assert few.mean().item() == pytest.approx(many.mean().item(), rel=0.02)


def test_guided_velocities_have_no_kl() -> None:
    assert kl(guidance=2.0) is None
