"""flowward export"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..models.loading import Loading
from ..training.record import Record
from . import outputs
from .help import Page
from .options import parse, said

PAGE = Page(
    about="Write a run's weights for diffusers, with a model card: LoRA adapters, or the whole transformer if all "
    "weights were trained.",
    examples=(
        ("export runs/first", "write runs/first/export"),
        ("export runs/first --merged --output my-model", "write a whole pipeline with LoRA merged into it"),
    ),
    first=("output", "overwrite", "weights", "at", "merged", "device"),
)


@dataclass(frozen=True)
class Export:
    """Write a run's weights for diffusers, with a model card."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    output: Path | None = None
    """folder to write to (none: RUN/export, or RUN/export-2 and so on if that exists)"""
    overwrite: bool = False
    """replace an earlier export"""
    weights: Literal["policy", "ema"] = "policy"
    """weights to write: the trained `policy` or its `ema` average"""
    at: int | Literal["best"] | None = None
    """use a run's checkpoint of this iteration, or with its `best` headline score (none: the newest)"""
    merged: bool = False
    """write the whole transformer too, with LoRA merged into it"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)


def run(words: list[str]) -> int:
    chosen = parse(Export, words, "export", page=PAGE)
    run = Record.open(chosen.run)
    folder = outputs.chosen(chosen.output, chosen.run / "export", chosen.overwrite)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder with --output")
    from ..export import exported, writing  # after the flags, so that --help does not wait for torch and diffusers
    from .policies import policy_of

    before = folder.exists() and any(folder.iterdir())
    if before and not exported.facts(str(folder)):
        raise ValueError(f"{folder} is not an export, so it is not replaced: name another --output")
    place = folder.with_name(f".{folder.name}.partial") if before else folder
    policy = policy_of(str(chosen.run), chosen.weights, chosen.loading, said=said(words), at=chosen.at)
    at = run.best() if chosen.at == "best" else chosen.at
    files = writing.write(run, policy, place, chosen.weights, chosen.merged, at)
    if before:  # the earlier export stays until the new one is complete
        shutil.rmtree(folder)
        place.rename(folder)
    for path in files:
        print(folder / path.relative_to(place))
    return 0
