"""States with random steps, a little off policy, and the loss of the reverse process on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from flowward.algorithms.policy_gradient import Divergence, Ratio, policy_gradient
from flowward.process.flow import over
from flowward.process.laws import FlowSDE

RATIOS: tuple[Ratio, ...] = get_args(Ratio)
DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
ratios = pytest.mark.parametrize("ratio", RATIOS)
D = 6


def real(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """Five states of shape [2, 3] with three steps each, a little off policy."""

    x: Tensor
    v: Tensor
    old: Tensor
    reference: Tensor
    z: Tensor
    advantage: Tensor
    p: Tensor
    q: Tensor
    sigma: Tensor
    length: Tensor

    @classmethod
    def random(cls, law: Any = FlowSDE(0.7), off: float = 1e-3) -> Case:  # noqa: B008
        x, old, away, reference = real(4, 5, 2, 3)
        pairs = [(1.0, 0.9), (0.9, 0.8), (0.6, 0.45), (0.4, 0.3), (0.3, 0.1)]
        p, q, sigma = torch.tensor([law.coefficients(t, s, 0.9) for t, s in pairs], dtype=torch.float64).unbind(1)
        length = torch.tensor([t - s for t, s in pairs], dtype=torch.float64)
        z, advantage = real(5, 3, 2, 3, seed=1), real(5, 3, seed=2)
        return cls(x, old + off * away, old, reference, z, advantage, p, q, sigma, length)

    @property
    def x_s(self) -> Tensor:
        """[B, C, ...], as the old policy drew it."""
        centre = over(self.p, self.x) * self.x + over(self.q, self.x) * self.old
        return centre[:, None] + over(self.sigma, self.z) * self.z

    def density(self, v: Tensor) -> Tensor:
        """Sum over elements of the log density of x_s, [B, C]."""
        centre = over(self.p, self.x) * self.x + over(self.q, v) * v
        sigma = over(self.sigma, self.z)
        return Normal(centre[:, None], sigma).log_prob(self.x_s).flatten(2).sum(2)

    def loss(self, v: Tensor | None = None, **more: Any) -> Tensor:
        v = self.v if v is None else v
        tensors = {"z": self.z, "advantage": self.advantage, "v_ref": None, **more}
        return policy_gradient(v, self.old, q=self.q, sigma=self.sigma, length=self.length, **tensors)

    def slope(self, v: Tensor | None = None, **more: Any) -> Tensor:
        v = (self.v if v is None else v).clone().requires_grad_()
        return torch.autograd.grad(self.loss(v, **more).sum(), v)[0]


close = torch.testing.assert_close
