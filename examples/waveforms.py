"""Improve a flow of one-dimensional signals: short notes, learned from data out of tune, and a reward on the spectrum.

python waveforms.py                      # about a minute on one core
python waveforms.py flow_grpo 1          # another algorithm, another seed
"""

import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from math import pi
from typing import Any

import torch
from torch import Tensor, nn

import flowward

SHORT = bool(os.environ.get("FLOWWARD_SHORT"))
LENGTH = 64  # of a note, at 2,000 samples a second
PITCH = {f"note {k + 1}": 4 * 1.25**k for k in range(8)}  # cycles in a wave that is in tune: about a third apart


def notes(pitch: Tensor, draw: torch.Generator) -> Tensor:
    """Waveforms [n, LENGTH] near these pitches [n]: up to 12 % out of tune, fading away, with hiss."""
    many, along = len(pitch), torch.linspace(0, 1, LENGTH)
    off, phase, fade = (torch.rand(many, 1, generator=draw) for _ in range(3))
    turns = pitch[:, None] * (1 + 0.24 * (off - 0.5)) * along + 0.25 * phase
    hiss = 0.1 * torch.randn(many, LENGTH, generator=draw)
    return torch.sin(2 * pi * turns) * torch.exp(-(1 + fade) * along) + hiss


class Flow(nn.Module):
    """A velocity over waveforms, called with the pitch as a dict says: module(x, t, pitch=...)."""

    def __init__(self, width: int = 256):
        super().__init__()
        sizes = [LENGTH + 3 + len(PITCH), width, width, width]
        layers = [part for pair in pairwise(sizes) for part in (nn.Linear(*pair), nn.SiLU())]
        self.net = nn.Sequential(*layers, nn.Linear(width, LENGTH))

    def forward(self, x: Tensor, t: Tensor, pitch: Tensor) -> Tensor:
        time = torch.stack([t, torch.sin(3 * t), torch.cos(3 * t)], 1)
        velocity: Tensor = self.net(torch.cat([x, time, pitch], 1))
        return velocity


CLASSES = dict(zip(PITCH, torch.eye(len(PITCH)), strict=True))  # a prompt and what the flow is told of it


def learned(steps: int) -> Flow:
    """The flow after training on notes."""
    torch.manual_seed(0)
    draw, flow = torch.Generator().manual_seed(0), Flow()
    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    every, classes = torch.tensor([*PITCH.values()]), torch.stack([*CLASSES.values()])
    for _ in range(steps):
        kind = torch.randint(len(PITCH), (256,), generator=draw)
        data, t = notes(every[kind], draw), torch.rand(256, generator=draw)
        noise = torch.randn(data.shape, generator=draw)
        loss = (flow(torch.lerp(data, noise, t[:, None]), t, classes[kind]) - (noise - data)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    return flow


def make(lora_rank: int | None = None) -> Any:
    """The policy; `flowward train --model waveforms.py:make` calls this too."""
    condition = {prompt: {"pitch": row} for prompt, row in CLASSES.items()}
    return flowward.policies.of(
        learned(1000 if SHORT else 4000), (LENGTH,), condition, lora_rank=lora_rank, name="notes"
    )


def in_tune(waves: Tensor, prompts: Sequence[str]) -> Tensor:
    """The share [n] of the energy of waves [n, LENGTH] that is at the pitch of the prompt."""
    power = torch.fft.rfft(waves * torch.hann_window(LENGTH)).abs().square()
    bins = torch.arange(power.shape[1])
    pitch = torch.tensor([PITCH[prompt] for prompt in prompts])[:, None]
    near = (bins - pitch).abs() <= 1
    return (power * near).sum(1) / power.sum(1)


in_tune.bounds = (0.0, 1.0)  # type: ignore[attr-defined]


def main(algorithm: str = "advantageflow", seed: int = 0, output: str | None = None) -> Any:
    rate = {"advantageflow": 1e-3, "flow_grpo": 1e-4}[algorithm]
    run = flowward.fit(
        algorithm, make(), in_tune, list(PITCH), seed=seed, output=output, iterations=30 if SHORT else 80,
        images_per_update=256, rollout_batch=256, microbatch=256, group_size=32, learning_rate=rate,
        warmup=2, schedule="constant" if SHORT else "cosine",
        evaluation={"images": 160 if SHORT else 320}, evaluate_every=40,
    )  # fmt: skip
    print(run.evaluate().sentence)
    return run


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(int, sys.argv[2:3]), *sys.argv[3:4])
