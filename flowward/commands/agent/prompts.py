"""flowward agent prompts"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ...system.errors import unknown
from ...system.terminal import visible
from ...system.whole_files import write
from .. import outputs
from ..help import Page
from ..options import parse

PAGE = Page(
    about="Show the prompts of the modules (Jinja2 files), or copy them to a folder to change them. Train with them by "
    "`flowward agent train --templates FOLDER`.",
    examples=(
        ("agent prompts planner", "the planner's prompt"),
        ("agent prompts --output my-prompts", "copies of all, for your own changes"),
    ),
)


@dataclass(frozen=True)
class Prompts:
    """Show the prompts of the modules."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[MODULE ...]")] = ()
    """planner, executor, verifier, generator, analyst or judge (default: all)"""
    templates: Path | None = None
    """show those of this folder"""
    output: Path | None = None
    """copy them to this folder"""
    overwrite: bool = False
    """replace existing files there"""


def run(words: list[str]) -> int:
    asked: Prompts = parse(Prompts, words, "agent prompts", page=PAGE)

    from ...agent.templates import NAMES, Templates

    for name in asked.names:
        if name not in NAMES:
            raise ValueError(unknown("module", name, NAMES))
    templates = Templates(asked.templates)
    templates.refuse()
    chosen = asked.names or NAMES
    if asked.output:
        paths = [asked.output / f"{name}.txt" for name in chosen]
        for path in paths:
            outputs.refuse(path, asked.overwrite)
        asked.output.mkdir(parents=True, exist_ok=True)
        for name, path in zip(chosen, paths, strict=True):
            write(path, templates.source(name).read_text("utf-8"))
            print(visible(str(path)))
        return 0
    for number, name in enumerate(chosen):
        print(("\n" if number else "") + f"=== {name} ({templates.source(name)})")
        print(visible(templates.source(name).read_text("utf-8").rstrip("\n")))
    return 0
