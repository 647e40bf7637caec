"""Per-iteration metrics and timings, as written to metrics.jsonl (explained in glossary.py)."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..evaluation.outcome import NOUNS
from ..learning.credit import group_max
from ..process.rollout import Rollout
from ..prompts import Prompt
from ..system import distributed
from .lines import NO_PARTS, PACE
from .samples import Samples

SHOWN = ("reward_histogram", "best", "worst")  # keys of a line whose values are mappings
BINS = 10  # of the histogram of rewards


@dataclass(frozen=True)
class Step:
    """One finished iteration.

    Its images and their scores are those that this process sampled: all of them, unless several processes share a run.
    A step that only evaluates (step 0, for example) has none.
    """

    index: int  # counts from 1
    metrics: dict[str, float]
    health: list[str]  # warnings; usually none
    seconds: dict[str, float]
    evaluation: dict[str, Any] | None = None  # the result of `evaluate`, if an evaluation was due
    cpu_share: float | None = None  # of training with several CPU threads: see system.threads.Cores
    measures: dict[str, float] = field(default_factory=dict)  # what the algorithm measures at an evaluation
    pace: dict[str, float] = field(default_factory=dict)  # of several processes: see `pace`
    speed: dict[str, float] = field(default_factory=dict)  # figures that depend on the clock: see speed.py
    shown: dict[str, Any] = field(default_factory=dict)  # of the samples, not plotted: see SHOWN
    samples: Samples = field(default_factory=Samples.none, repr=False, compare=False)

    @property
    def images(self) -> Tensor:
        """The N images that were sampled and scored, float [N, 3, H, W] in [0, 1] on the CPU; videos [N, F, 3, H, W].

        With a model whose samples are no images (flowward.policies.of), these are its samples [N, ...].

        Raises:
            ValueError: the next iteration has begun, and they have been let go.
        """
        return self.samples.images

    @property
    def prompts(self) -> list[str]:
        """The N prompts of the images."""
        return self.samples.prompts

    @property
    def rewards(self) -> dict[str, Tensor]:
        """The scores [N] of each reward, by its name, without weights."""
        return self.samples.rewards

    @property
    def advantages(self) -> Tensor:
        """The advantages [N] that the images were trained with."""
        return self.samples.advantages

    def line(self, seen: int, samples: str = "images") -> dict[str, Any]:
        """The line of metrics.jsonl; `seen` is the number of training samples so far, `samples` what they are."""
        line: dict[str, Any] = {
            "iteration": self.index,
            samples: seen,
            **self.metrics,
            **self.measures,
            "health": self.health,
        }
        line["seconds"] = {**self.seconds, "total": sum(self.seconds.values())}
        if self.cpu_share is not None:  # it varies as seconds do, so it is among them
            line["seconds"]["cpu_share"] = self.cpu_share
        line["seconds"] |= self.pace
        line |= ({"speed": self.speed} if self.speed else {}) | self.shown
        return line | ({"evaluation": self.evaluation} if self.evaluation else {})

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Step:
        """From its line, without the evaluation."""
        others = ("iteration", *NOUNS, "health", "seconds", "evaluation", "speed", *SHOWN)
        metrics = {name: value for name, value in line.items() if name not in others}
        spent = line.get("seconds") or {}
        seconds = {name: value for name, value in spent.items() if name not in NO_PARTS}
        return cls(
            line["iteration"],
            metrics,
            line.get("health") or [],
            seconds,
            cpu_share=spent.get("cpu_share"),
            pace={name: spent[name] for name in PACE if name in spent},
            speed=line.get("speed") or {},
            shown={name: line[name] for name in SHOWN if name in line},
        )


def pace(busy: float) -> dict[str, float]:
    """Seconds of the slowest and of the fastest process, without waiting for others; empty for a single process."""
    every = distributed.told(busy)
    return dict(zip(PACE, (max(every), min(every)), strict=True)) if len(every) > 1 else {}


def scored(reward: Tensor, advantage: Tensor, cohort: Tensor) -> dict[str, float]:
    """Metrics of scored samples: reward, advantage, and number of the cohort that each is compared with, [N].

    `zero_variance` is the share of samples in groups whose advantages are all 0.
    """
    reward, silent = reward.double(), group_max(advantage.abs(), cohort) < 1e-9
    return {
        "reward": reward.mean().item(),
        "reward_std": reward.std().item(),
        "zero_variance": silent.double().mean().item(),
    }


def describe(rollout: Rollout, prompts: Sequence[Prompt]) -> dict[str, float]:
    """Metrics of a rollout before training: of the policy's own samples, without exemplars."""
    own = rollout.own
    return scored(rollout.reward[own], rollout.advantage[own], rollout.cohort[own]) | {
        "latent_rms": _rms(rollout.x0[rollout.own_here.to(rollout.x0.device)]),
        "duplicate_prompts": len(prompts) - len(set(prompts)),
    }


def _rms(values: Tensor) -> float:
    """The root mean square of the values of all processes."""
    mean = values.square().mean().item() if values.numel() else 0.0
    found = distributed.merged({"sum": mean * values.numel(), "count": float(values.numel())})
    return torch.tensor(found["sum"] / max(1.0, found["count"])).sqrt().item()


def averaged(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each figure over the optimiser steps of an iteration, which all have the same figures."""
    names = figures[0] if figures else {}
    return {name: sum(each[name] for each in figures) / len(figures) for name in names}


def histogram(reward: Tensor) -> dict[str, list[float]]:
    """Counts of rewards [N] in BINS equal bins from the lowest to the highest, and the BINS + 1 edges."""
    counts, edges = np.histogram(reward.double().numpy(), BINS)
    return {"counts": counts.tolist(), "edges": edges.tolist()}


def extremes(reward: Tensor, own: Tensor) -> tuple[int, int]:
    """The numbers of the best and of the worst sample, by rewards [N], among those with own [N]."""
    none = torch.full_like(reward, float("inf"))
    return int(torch.where(own, reward, -none).argmax()), int(torch.where(own, reward, none).argmin())


class Tally:
    """Collects the metrics of a loss over microbatches and processes.

    A metric [B] is averaged over its points, which may be only some of all points. If its name ends in `_min` or
    `_max`, the smallest or the largest value is kept instead.
    """

    def __init__(self) -> None:
        self._totals: dict[str, float] = defaultdict(float)
        self._counts: dict[str, float] = defaultdict(float)
        self._lowest: dict[str, float] = {}
        self._highest: dict[str, float] = {}
        self.begin_step()

    def begin_step(self) -> None:
        """What is added from now on belongs to the next optimiser step."""
        self._before = dict(self._totals), dict(self._counts)

    def of_last_step(self) -> dict[str, float]:
        """Means over the points of the last optimiser step; without the loss, the smallest and the largest values."""
        totals, counts = (
            distributed.merged({name: now - before.get(name, 0.0) for name, now in every.items()})
            for every, before in zip((self._totals, self._counts), self._before, strict=True)
        )
        return {name: total / counts[name] for name, total in totals.items() if name != "loss" and counts[name]}

    def add(self, figures: Mapping[str, Tensor]) -> None:
        for name, value in figures.items():
            if name.endswith("_min"):
                self._lowest[name] = min(self._lowest.get(name, float("inf")), value.min().item())
            elif name.endswith("_max"):
                self._highest[name] = max(self._highest.get(name, float("-inf")), value.max().item())
            else:
                self._totals[name] += value.sum().item()
                self._counts[name] += len(value)

    def means(self, points: float) -> dict[str, float]:
        """Means of all metrics. The loss is divided by `points`, since it is 0 for skipped points."""
        totals, counts = distributed.merged(self._totals), distributed.merged(self._counts)
        counts["loss"] = points
        return {name: total / counts[name] for name, total in totals.items()}

    def extremes(self) -> dict[str, float]:
        return distributed.merged(self._lowest, min) | distributed.merged(self._highest, max)


class Clock:
    """Sums the seconds spent under each name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started
