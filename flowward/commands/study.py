"""flowward study"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..system import whole_files
from ..system.errors import at_least_one
from ..system.terminal import visible
from .help import Page
from .options import parse

PAGE = Page(
    about="Compare algorithms on one model: several seeds and rewards, equal budgets of images, network evaluations or "
    "time, and the same search for the settings of each. A YAML file says what; docs/study.md explains it. A study "
    "that was stopped goes on when the same command is given again.",
    examples=(
        ("study study.yaml --output runs/study", "start it, or continue it"),
        ("study study.yaml --output runs/study --workers 1", "one run at a time"),
    ),
)


@dataclass(frozen=True)
class StudyOptions:
    """Compare algorithms at equal budgets."""

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """a YAML file: algorithms, rewards, seeds, budgets, search"""
    output: Path
    """folder of the study"""
    workers: int | None = None
    """runs at the same time, each on one thread (none: one per processor core)"""

    def __post_init__(self) -> None:
        if self.workers is not None:
            at_least_one(self, "workers")


def run(words: list[str]) -> int:
    command = shlex.join(["flowward", "study", *words])
    chosen = parse(StudyOptions, words, "study", page=PAGE)
    from ..studies import plan
    from ..studies.folder import StudyFolder

    StudyFolder.refuse_missing()
    folder = StudyFolder.begin(chosen.output, plan.read(chosen.file))
    try:
        found = folder.carry_out(chosen.workers or os.cpu_count() or 1, lambda text: print(visible(text), flush=True))
    except KeyboardInterrupt:
        print("stopped; give the same command again to continue")
        return 130
    from ..pages import study as page
    from .tables import say, table

    score = found["study"]["score"]
    for each in found["rewards"]:
        for budget, own in each["budgets"].items():
            made = page.table(budget, own, score)
            title = f"{each['reward']}: {own['amount']:,.0f} {budget}; the base model has {page.percent(each['base'])}"
            say(table(made.head, made.rows, visible(title), made.head[1:]))
    file = chosen.output / "study.html"
    whole_files.write(file, page.of(found, command))
    print(visible(f"report: {file}"))
    return 0
