"""Rewards to be served, images and prompts to be scored, and a plain client."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import httpx2
import torch
from torch import Tensor

PROMPTS = [f"prompt {n}" for n in range(7)]
WEB = httpx2.Client(verify=False, timeout=60)
IMAGES = torch.rand(7, 3, 8, 10, generator=torch.Generator().manual_seed(0))


class Weighted:
    """Depends on every pixel, on the prompt and on the metadata, so that a mix-up shows."""

    takes_videos = True

    def __init__(self, seconds: float = 0):
        self.seconds, self.calls = seconds, list[int]()

    def refuse(self, prompts: Sequence[str], metadata: Any = None) -> None:
        if "nonsense" in prompts:
            raise ValueError("cannot read 'nonsense'")

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.calls.append(len(images))
        time.sleep(self.seconds)
        weights = torch.linspace(-1, 2, images[0].numel(), dtype=torch.float64)
        about = [each["add"] for each in metadata] if metadata else [0.0] * len(images)
        said = torch.tensor([float(prompt.split()[-1]) + add for prompt, add in zip(prompts, about, strict=True)])
        return images.double().flatten(1) @ weights + said


def fails(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
    raise KeyError("weights")


class Held:
    """Computes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()
        self.busy, self.most, self.calls = 0, 0, list[int]()

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        self.calls.append(len(images))
        self.busy += 1
        self.most = max(self.most, self.busy)
        self.begun.set()
        self.go.wait(60)
        time.sleep(0.01)
        self.busy -= 1
        return torch.zeros(len(images))
