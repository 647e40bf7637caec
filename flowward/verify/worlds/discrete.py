"""Worlds of finitely many atoms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .rewards import Affine, Function, store
from .world import Expectation, Posterior, Times, World, not_negative, point, probabilities


@dataclass(frozen=True)
class Discrete(World):
    """Finitely many x0. Any function of x0 can be the reward, since a tilt only changes the weights."""

    atoms: Tensor  # [K, D]
    weights: Tensor  # [K], on any scale

    def __post_init__(self) -> None:
        store(self, atoms=self.atoms, weights=probabilities(self.weights))

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        return self.atoms[self.weights.multinomial(n, replacement=True, generator=generator)]

    def posterior(self, x: Tensor, t: Times) -> Posterior:
        x, t = point(x, t)
        if (t <= 0).any():
            raise ValueError("atoms have no density at t = 0: use t > 0")
        z = (x[:, None] - (1 - t[:, None, None]) * self.atoms) / t[:, None, None]
        log = self.weights.log() - (z**2).sum(-1) / 2 - x.shape[1] * (t[:, None] * math.sqrt(2 * math.pi)).log()
        basis, scores = torch.eye(x.shape[1], dtype=torch.float64)[None], -z / t[:, None, None]
        return Posterior(t, log.logsumexp(1), log.softmax(1), self.atoms[None], scores, basis, None)

    def given(self, x: Tensor, t: Times, f: Function | None = None) -> Expectation:
        return self.posterior(x, t).expect(f)

    def mean(self, reward: Function) -> float:
        return (self.weights @ reward(self.atoms).double()).item()

    def tilt(self, reward: Function, strength: float) -> tuple[Discrete, float]:
        log = self.weights.log() + strength * reward(self.atoms).double()
        return Discrete(self.atoms, log.softmax(0)), log.logsumexp(0).item()

    def reweighted(self, weight: Affine) -> Discrete:
        return Discrete(self.atoms, self.weights * not_negative(weight(self.atoms)))
