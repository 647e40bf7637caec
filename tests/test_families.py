"""Every family of models, held to its pipeline in diffusers on a tiny one with random weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import TINY, tiny

from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.verify import model


def policy(name: str, rank: int | None = 2, **more: Any) -> DiffusersPolicy:
    torch.set_num_threads(1)
    given = {"frames": 5} if name == "WanPipeline" else {}
    return DiffusersPolicy(name, FAMILIES[name](tiny(name), 32, 32, **given, **more), rank, "float32")


def test_every_family_has_a_tiny_pipeline() -> None:
    assert TINY.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_what_its_pipeline_is(name: str) -> None:
    broken = [f"{check.law}: {check.measured}" for check in model.laws(policy(name)) if not check.holds]
    assert not broken
