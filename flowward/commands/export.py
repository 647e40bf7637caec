"""flowward export"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ..models.loading import Loading
from ..training.record import Record, refuse_other_kinds
from . import outputs
from .help import Page
from .options import parse, said

PAGE = Page(
    about="Write a run's weights for diffusers, with a model card: LoRA adapters, or the whole transformer if all "
    "weights were trained.",
    examples=(
        ("export runs/first", "write runs/first/export"),
        ("export runs/first --merged --output my-model", "write a whole pipeline with LoRA merged into it"),
        ("export runs/first --push-to-hub owner/name", "write runs/first/export, then upload it to the hub"),
    ),
    first=("output", "overwrite", "weights", "at", "merged", "device", "push-to-hub"),
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
    push_to_hub: Annotated[str | None, tyro.conf.arg(metavar="OWNER/NAME")] = None
    """upload the export to this model of the hub, which is made if it does not exist"""
    private: bool = False
    """make the model of --push-to-hub private, if it does not exist yet"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)


def run(words: list[str]) -> int:
    chosen = parse(Export, words, "export", page=PAGE)
    run = Record.open(chosen.run)
    refuse_other_kinds(chosen.run, "export")
    folder = outputs.chosen(chosen.output, chosen.run / "export", chosen.overwrite)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file: name a folder with --output")
    if chosen.private and chosen.push_to_hub is None:
        raise ValueError("--private belongs to --push-to-hub OWNER/NAME; without it nothing is uploaded")
    if chosen.push_to_hub is not None:
        from ..export import hub

        hub.refuse(chosen.push_to_hub)
        hub.fetch_card(run)
    for path in _write(chosen, words, run, folder):
        print(path)
    if chosen.push_to_hub is not None:
        print(hub.push(folder, chosen.push_to_hub, chosen.private))
    return 0


def _write(chosen: Export, words: list[str], run: Record, folder: Path) -> list[Path]:
    """Write the export; an earlier one stays until the new one is complete. Returns the paths of its parts."""
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
    return [folder / path.relative_to(place) for path in files]
