"""Policies over tiny pipelines, one for each family."""

from __future__ import annotations

from typing import Any

import torch
from tiny_pipelines import tiny

from flowward.models import Loading
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES

SMALL = Loading(size=(32, 32), device="cpu")


def policy(name: str, rank: int | None = 2, **more: Any) -> DiffusersPolicy:
    torch.set_num_threads(1)
    given = {"frames": 5} if name == "WanPipeline" else {}
    return DiffusersPolicy(name, FAMILIES[name](tiny(name), 32, 32, **given, **more), rank, "float32")
