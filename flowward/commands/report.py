"""flowward report"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..pages import index, report
from .help import Page
from .options import parse

PAGE = Page(
    about="Write RUN/report.html, one page with curves, samples and health of a run. It works during training, "
    "too. For a folder of runs, write its index.html: a table of the runs with links to their reports.",
    examples=(
        ("report runs/first", "write runs/first/report.html"),
        ("report runs", "write runs/index.html, and the reports that are missing or out of date"),
    ),
)


@dataclass(frozen=True)
class Report:
    """Write report.html of run folders: curves, samples and health. It works while a run is going, too."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """one or more run folders, or folders of run folders"""


def run(words: list[str]) -> int:
    folders = parse(Report, words, "report", page=PAGE).runs
    if not folders:
        raise ValueError("name at least one run folder")
    for folder in folders:
        print(index.write(folder) if index.runs(folder) else report.write(folder))
    return 0
