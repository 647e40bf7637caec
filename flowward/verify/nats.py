"""Laws of `gamma: auto`: the gain form, the line search, gamma from the advantages, and KL in nats."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from ..algorithms.auto_gamma import UNSEEN, effective_size, gamma_for
from ..learning.terms import nats
from ..process.flow import over
from ..process.policy import Models
from .check import Check, Kind, Setting, compared, number

SOURCE = "derived 15"


def laws(kind: Kind) -> Iterator[Check]:
    s = Setting.random()
    auto, plain = kind(gamma="auto"), kind(gamma=UNSEEN)
    yield compared(
        "gamma auto: gradient of a fixed gamma, divided by it", SOURCE, UNSEEN * s.slope(auto), s.slope(plain)
    )
    yield from _line_search(kind, s)
    clipped = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi)  # the variance of clip(N(0, 1), 1)
    gamma = gamma_for(clipped, 0.0, -0.9, 0.7)
    yield number("gamma for clip(N(0, 1), 1), ESS 0.7, without floor", SOURCE, gamma, 1.097, 5e-4)
    yield number("its q has that effective size", SOURCE, effective_size(gamma, clipped, 0.0), 0.7, 1e-12)
    yield number("gamma for verdicts with even odds", SOURCE, gamma_for(1.0, 0.0, -1.0, 0.7), math.sqrt(7 / 3), 1e-12)
    yield _gaussians()


def _line_search(kind: Kind, s: Setting) -> Iterator[Check]:
    """Each point alone: its minimum is at v_old + A e / (A + gamma), so alpha* is known point by point."""
    a = s.points.advantage
    best = s.old + over(a / (a + UNSEEN), s.old) * s.e
    for step in (1.0, 2.0, 0.5):
        v = s.old + step * (best - s.old)
        models = Models(lambda *_, v=v: v, lambda *_: s.old, lambda *_: s.reference)
        _, watched = kind(gamma="auto", lam=0.0).loss(models, s.points)
        found = watched["_along"] / watched["_bend"]
        law = f"line search: 1/f at f times the way to the minimum, f = {step:g}"
        yield compared(law, SOURCE, found, torch.full_like(found, 1 / step))


def _gaussians() -> Check:
    """N(0, I) and N(m, I) in two dimensions: v_p - v_q = m t / S(t), S = (1-t)^2 + t^2, and the KL is |m|^2 / 2."""
    m = torch.tensor([[0.6, -0.3]], dtype=torch.float64)
    t = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    d = m * (t / ((1 - t) ** 2 + t**2))[:, None]
    found = nats(d, torch.zeros_like(d), t, torch.ones_like(t)).mean().item()
    law = "two Gaussians: D E[(1-t)/t mean(d^2)] is their KL, but for 0.3 % at t < 0.05"
    return number(law, SOURCE, found / (m.square().sum().item() / 2), 1.0, 4e-3)
