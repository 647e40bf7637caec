"""flowward export"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..models.loading import Loading
from ..system.paths import refuse_filled
from ..training.record import Record
from .help import Page
from .options import parse, said

PAGE = Page(
    about="Write a run's weights for diffusers, with a model card: LoRA adapters, or the whole transformer if all "
    "weights were trained.",
    examples=(
        ("export runs/first", "write runs/first/export"),
        ("export runs/first --merged --output my-model", "write a whole pipeline with LoRA merged into it"),
    ),
    first=("output", "weights", "merged", "device"),
)


@dataclass(frozen=True)
class Export:
    """Write a run's weights for diffusers, with a model card."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    output: Path | None = None
    """folder to write to (default: RUN/export)"""
    weights: Literal["policy", "ema"] = "policy"
    """weights to write: the trained `policy` or its `ema` average"""
    merged: bool = False
    """write the whole transformer too, with LoRA merged into it"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)


def run(words: list[str]) -> int:
    chosen = parse(Export, words, "export", page=PAGE)
    run = Record.open(chosen.run)
    folder = chosen.output or chosen.run / "export"
    refuse_filled(folder, "another --output")
    from ..export import writing  # after the flags, so that --help does not wait for torch and diffusers
    from .policies import policy_of

    policy = policy_of(str(chosen.run), chosen.weights, chosen.loading, said=said(words))
    for path in writing.write(run, policy, folder, chosen.weights, chosen.merged):
        print(path)
    return 0
