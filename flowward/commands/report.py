"""flowward report"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..pages import report
from .options import parse


@dataclass(frozen=True)
class Report:
    """Write report.html, one page with everything in it, from what a run folder holds so far."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN [RUN ...]")]
    """run folders"""


def run(words: list[str]) -> int:
    folders = parse(Report, words, "report").runs
    if not folders:
        raise ValueError("name at least one run folder")
    for folder in folders:
        print(report.write(folder))
    return 0
