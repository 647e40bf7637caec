"""Small torch modules that predict velocities, for flowward.policies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from flowward import policies

SHAPE = (6, 2)
GOALS = {f"goal {k}": torch.tensor([0.5 * k, 1.0 - 0.3 * k]) for k in range(4)}


class Net(nn.Module):
    """A small network that is told one tensor [B, 2]."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.inner = nn.Linear(12 + 1 + 2, width)
        self.outer = nn.Linear(width, 12)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        hidden = torch.tanh(self.inner(torch.cat([x.flatten(1), t[:, None], c], 1)))
        return self.outer(hidden).view_as(x)


class Gaussian(nn.Module):
    """The exact velocity noise - data of data with this mean and spread; t = 1 is noise."""

    def __init__(self, mean: float = 2.0, spread: float = 0.5):
        super().__init__()
        self.mean, self.spread = nn.Parameter(torch.tensor(mean)), spread

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        t = t.view(-1, *[1] * (x.ndim - 1))
        variance = t**2 + (1 - t) ** 2 * self.spread**2
        slope = (t - (1 - t) * self.spread**2) / variance
        return slope * (x - (1 - t) * self.mean) - self.mean


class Turned(nn.Module):
    """The same flow in another convention."""

    def __init__(self, inner: nn.Module, noise: float, data: float, sign: float):
        super().__init__()
        self.inner, self.noise, self.data, self.sign = inner, noise, data, sign

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.sign * self.inner(x, (t - self.data) / (self.noise - self.data))


def net(seed: int = 0, width: int = 16) -> Net:
    torch.manual_seed(seed)
    return Net(width)


def policy(seed: int = 0, **more: Any) -> policies.ModulePolicy:
    return policies.of(net(seed), SHAPE, GOALS, **more)


def near(samples: Tensor, prompts: Any) -> Tensor:
    """Minus the squared distance of each sample's mean from its goal."""
    goals = torch.stack([GOALS[prompt] for prompt in prompts])
    return -(samples.mean(1) - goals).square().sum(1)
