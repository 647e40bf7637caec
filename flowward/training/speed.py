"""How fast an iteration was: images and network evaluations per second, MFU, GPU memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ..process.policy import Policy
from ..prompts import Prompt
from ..system import distributed, tables

PEAKS = Path(__file__).with_name("peaks.yaml")


def peak(policy: Policy) -> float | None:
    """The most FLOP/s of the policy's device at its precision; None if unknown, or if float32 runs as TF32."""
    if policy.device.type != "cuda" or (policy.precision == "float32" and torch.backends.cuda.matmul.allow_tf32):
        return None
    known = tables.load(PEAKS).get(torch.cuda.get_device_name(policy.device), {}).get(policy.precision)
    return None if known is None else known * 1e12


@dataclass
class Speedometer:
    """Figures of iterations that depend on the clock and the device."""

    policy: Policy
    prompt: Prompt  # any prompt of the run, for counting

    @cached_property
    def _peak(self) -> float | None:
        return peak(self.policy)

    @cached_property
    def flops(self) -> tuple[float, float]:
        """FLOPs of one network evaluation: without, and with a backward pass, which adds those of the backward pass."""
        return _flops(self.policy, self.prompt, False), _flops(self.policy, self.prompt, True)

    def reset(self) -> None:
        """Begin an iteration."""
        self.policy.evaluated = self.policy.trained = 0
        if self.policy.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.policy.device)

    def evaluations(self) -> dict[str, float]:
        """Network evaluations since `reset`, of all processes: all, and those with a backward pass."""
        return distributed.merged({"all": float(self.policy.evaluated), "trained": float(self.policy.trained)})

    def figures(self, images: int, evaluations: Mapping[str, float], seconds: float) -> dict[str, float]:
        """Per second of an iteration, for metrics.jsonl. MFU and memory only where they are known."""
        found = {"images_per_second": images / seconds, "evaluations_per_second": evaluations["all"] / seconds}
        if self._peak and (without := self.flops[0]):  # 0: no part of the network is one that torch can count
            done = without * (evaluations["all"] - evaluations["trained"]) + self.flops[1] * evaluations["trained"]
            found["mfu"] = done / (seconds * self._peak * distributed.count())
        if self.policy.device.type == "cuda":
            found["gpu_memory"] = torch.cuda.max_memory_allocated(self.policy.device) / 1e9
        return found


def _flops(policy: Policy, prompt: Prompt, backward: bool) -> float:
    x = torch.zeros(1, *policy.latent_shape, device=policy.device)
    t, condition = torch.full((1,), 0.5, device=policy.device), policy.encode([prompt])
    with torch.set_grad_enabled(backward), FlopCounterMode(display=False) as counter:
        v = policy.velocity(x, t, condition)
        if backward:
            v.sum().backward()
    for tensor in policy.weights.tensors("policy").values():
        tensor.grad = None
    return float(counter.get_total_flops())
