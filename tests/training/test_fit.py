"""The largest batches that fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny_runs import equal, small, snapshot, trainer

from flowward import models, prompts
from flowward.algorithms.presets import PRESETS
from flowward.cli import main
from flowward.training.fit import cuda_peak, fitted, largest
from flowward.training.trainer import Trainer


def test_the_search_stops_at_the_first_that_does_not_fit() -> None:
    asked: list[int] = []

    def peak(size: int) -> float:
        asked.append(size)
        return 100.0 * size

    assert largest([1, 2, 4, 8, 16], peak, 500) == (4, 400.0)
    assert asked == [1, 2, 4, 8]
    assert largest([1, 2], peak, 500) == (2, 200.0)
    with pytest.raises(ValueError, match="even a batch of 3 needs more than the limit"):
        largest([3, 6], peak, 200)


class Meter:
    """Bytes as if each point of a pass took 10 and each image that is sampled 20."""

    def __init__(self, one: Trainer, monkeypatch: pytest.MonkeyPatch):
        self.most = 0
        velocity, policy = one.policy.velocity, one.policy

        def measured(x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
            self.most = max(self.most, len(x) * (10 if torch.is_grad_enabled() else 20))
            return velocity(x, *rest, **more)

        monkeypatch.setattr(policy, "velocity", measured)

    def __call__(self, work: Callable[[], None]) -> float:
        self.most = 0
        work()
        return self.most


@pytest.mark.parametrize("name", ["advantageflow", "dgpo", "flow_grpo", "tempflow_grpo", "fdfo"])
def test_batches_become_as_large_as_the_limit_allows(name: str, tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preset = PRESETS[name]["scenes"]
    group = preset.run.get("group_size", 36)
    run = small(**{**preset.run, "images_per_update": 72, "group_size": group, "microbatch": 36, "rollout_batch": 36})
    one = Trainer(preset.algorithm, models.load(tiny, 2, "float32"), bright, prompts.of("x", ["a circle"]), run)
    before = snapshot(one.policy)
    copies = (
        20 if run.updates_per_iteration > 1 else 8
    )  # bytes: Adam's moments, and what a failed iteration goes back to
    more = copies * sum(tensor.numel() for tensor in one.parameters)
    everything, said = fitted(one, 1e9, Meter(one, monkeypatch))
    assert everything.rollout_batch == run.images
    assert everything.microbatch == one.points_per_update
    assert f"{one.points_per_update} of {one.points_per_update} points per training pass" in said
    draw = one.rollout  # of a tree, few of the samples that are drawn together go through the network together
    less, _ = fitted(one, more + 20 * 36 * draw.breadth / draw.leaves, Meter(one, monkeypatch))
    assert less.rollout_batch == 36
    assert 10 * less.microbatch <= 20 * 36
    assert less.microbatch < one.points_per_update or 10 * one.points_per_update <= 20 * 36
    assert less.microbatch % one.indivisible == 0
    Trainer(preset.algorithm, one.policy, bright, one.prompts, less)  # comes out even
    assert one.run == run
    assert equal(before, snapshot(one.policy))
    assert all(tensor.grad is None or not tensor.grad.any() for tensor in one.parameters)


def bright(images: torch.Tensor, prompts: Any, metadata: Any = None) -> torch.Tensor:
    return images.mean((1, 2, 3))


@pytest.mark.processor
def test_no_limit_where_memory_is_not_told(tiny: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="works only on CUDA devices, but the model is on 'cpu'"):
        cuda_peak(torch.device("cpu"))
    assert main(["train", "--model", tiny, "--memory", "4", "--iterations", "1"]) == 2
    assert "only on CUDA devices" in capsys.readouterr().err
    assert trainer(tiny).points_per_update == 8
