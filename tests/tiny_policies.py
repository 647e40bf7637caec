"""Policies over tiny pipelines, one for each family."""

from __future__ import annotations

from typing import Any

import torch
from tiny_pipelines import small, tiny
from tiny_runs import plain, snapshot
from torch import Tensor

from flowward import prompts
from flowward.algorithms import AdvantageFlow
from flowward.learning.points import Renoise
from flowward.models import Adapters, Loading
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.process.rollout import Sampler
from flowward.rewards.images.jpeg import Compressible
from flowward.training.run import Run
from flowward.training.trainer import Trainer

SMALL = Loading(size=(32, 32), device="cpu")


def policy(name: str, rank: int | Adapters | None = 2, **more: Any) -> DiffusersPolicy:
    torch.set_num_threads(1)
    return DiffusersPolicy(name, FAMILIES[name](tiny(name), **small(name), **more), rank, "float32")


def trained(one: DiffusersPolicy) -> dict[str, Tensor]:
    """The weights after two iterations with old and reference, in plain gradient steps."""
    run = Run(iterations=2, images_per_update=4, group_size=2, microbatch=4, rollout_batch=4)
    how = AdvantageFlow(rollout=Sampler(3, grid="model"), points=Renoise(1))
    trainer = plain(Trainer(how, one, Compressible(), prompts.of("mine", ["a red cat", "dog", "a"]), run))
    trainer.step()
    trainer.step()
    return snapshot(one)
