"""flowward compare"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..system.terminal import tell, visible
from .help import Page
from .options import parse

PAGE = Page(
    about="Write one page with the curves of several runs in the same charts, their pictures, and the settings that "
    "differ. It is one file and works offline, also while the runs are still training.",
    examples=(
        ("compare runs/first runs/second", "write compare.html"),
        ("compare runs --output all.html", "all runs of a folder"),
    ),
)


@dataclass(frozen=True)
class Compare:
    """Write one page with the curves of several runs in the same charts."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """two or more run folders, or folders of run folders"""
    output: Path = Path("compare.html")
    """file to write"""


def run(words: list[str]) -> int:
    chosen = parse(Compare, words, "compare", page=PAGE)
    from ..pages import index
    from ..pages.watch import compare

    folders = [each for folder in chosen.runs for each in index.runs(folder) or [folder]]
    if len(folders) < 2:
        raise ValueError(f"name at least two runs to compare, not {len(folders)}")
    if unlike := compare.write(folders, chosen.output):
        tell(unlike)
    print(visible(str(chosen.output)))
    return 0
