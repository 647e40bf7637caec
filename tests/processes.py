"""Several processes for a test, forked from one that has imported what they need: each would take seconds for that."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from typing import Any

from torch.multiprocessing.spawn import start_processes

IMPORTED = (
    "pytest",
    "peft",
    "diffusers.models",
    "diffusers.pipelines.flux.pipeline_flux",
    "diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3",
    "diffusers.pipelines.wan.pipeline_wan",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "flowward.models.pipelines",
    "flowward.models.scenes",
    "flowward.training.assembly",
)
METHOD = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


def together(work: Callable[..., None], given: Sequence[Any], count: int) -> None:
    """Call work(number, *given) in `count` new processes and wait for all; an exception in one of them is raised."""
    multiprocessing.set_forkserver_preload(list(IMPORTED))
    start_processes(work, tuple(given), count, start_method=METHOD)
