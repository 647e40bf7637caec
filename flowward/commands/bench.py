"""flowward bench"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import torch
import tyro

from .. import models, prompts, rewards
from ..system import freed_memory
from ..system.errors import between, unknown
from ..system.precision import Wish
from ..training import bench, config
from .help import Option, Page
from .options import parse, set_threads, take

MEASURES = ("overhead", "episodes", "launches")
MOST_REPEATS = 1000

PAGE = Page(
    about="Measure the speed of flowward itself, on the built-in models.",
    examples=(
        ("bench overhead --repeats 5", "time of an iteration, divided by that of its network passes"),
        ("bench episodes --repeats 5 --threads 1", "the same of an iteration of the built-in agent"),
        (
            "bench launches --model stabilityai/stable-diffusion-3.5-medium",
            "GPU kernels of a network pass, counted without a GPU (own options: bench launches --help)",
        ),
    ),
    beside=(Option("algorithm", "NAME", "algorithm whose iteration is measured (default: advantageflow)"),),
)


@dataclass(frozen=True)
class Bench:
    """Measure the speed of flowward itself."""

    what: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="[overhead|episodes|launches]")] = "overhead"
    """time of a training iteration (`episodes`: of an agent) divided by that of its passes; or GPU `launches`"""
    repeats: int = 5
    """iterations to measure; the median is printed"""
    precision: Wish = "auto"
    """precision of the networks (auto: bf16 if the processor has it)"""
    threads: int | None = None
    """CPU threads (default: torch's choice)"""
    images_per_update: int | None = None
    """images per optimiser step (default: that of the preset scenes)"""

    def __post_init__(self) -> None:
        between(self, 1, MOST_REPEATS, "repeats")


def run(words: list[str]) -> int:
    if words[:1] == ["launches"]:
        from . import launches  # it takes the options of `flowward train`

        return launches.run(words[1:])
    name, words = take(words, "algorithm")
    chosen = parse(Bench, words, "bench", page=PAGE)
    if chosen.what not in MEASURES:
        raise ValueError(unknown("measure", chosen.what, MEASURES))
    set_threads(chosen.threads)
    if chosen.what == "episodes":
        return _episodes(chosen)
    settings = config.settings_type(name or config.DEFAULT_ALGORITHM)()
    size = settings.run
    if chosen.images_per_update is not None:
        size = replace(size, images_per_update=chosen.images_per_update, rollout_batch=chosen.images_per_update)
    policy = models.load(settings.model, precision=chosen.precision)
    found = bench.overhead(
        settings.algorithm,
        policy,
        rewards.load(settings.reward),
        prompts.load(settings.prompts),
        size,
        chosen.repeats,
    )
    print(f"iteration            {found.iteration:8.3f} s  (median of {chosen.repeats}, {size.images} images)")
    print(f"bare networks        {found.networks:8.3f} s  (the same evaluations, interleaved)")
    for what, count in found.calls.items():
        print(f"  {what:<18} {count:8d} samples")
    print(f"overhead             {found.ratio:8.3f}    (target: at most 1.10)")
    if found.peak_memory is not None:
        print(f"peak memory          {found.peak_memory / 2**20:8.0f} MiB of the process")
    print(f"freed memory         {freed_memory.keep():>8}")
    print(f"precision            {policy.precision:>8}")
    print(f"threads              {torch.get_num_threads():8d}")
    return 0


def _episodes(chosen: Bench) -> int:
    from ..agent import bench as episodes  # it loads transformers
    from ..agent import config as agents

    settings = agents.starting("world", None)
    if chosen.precision != "auto":
        settings = replace(settings, precision=chosen.precision)
    found = episodes.overhead(chosen.repeats, settings)
    print(f"iteration            {found.iteration:8.3f} s  (median of {chosen.repeats}, built-in agent)")
    print(f"bare network calls   {found.networks:8.3f} s  (the same calls, interleaved)")
    for what, count in found.calls.items():
        print(f"  {what:<18} {count:8d} rows")
    print(f"overhead             {found.ratio:8.3f}    (target: at most 1.15)")
    print(f"threads              {torch.get_num_threads():8d}")
    return 0
