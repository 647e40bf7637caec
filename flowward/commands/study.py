"""flowward study"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..system.errors import at_least_one
from ..system.terminal import visible
from .help import Page
from .options import parse

PAGE = Page(
    about="Compare algorithms on one model: several seeds and rewards, equal budgets of images, network evaluations or "
    "time, and the same search for the settings of each. A YAML file says what; docs/study.md explains it. A study "
    "that was stopped goes on when the same command is given again.",
    examples=(
        ("study study.yaml --output runs/study", "carry it out, or on"),
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
    chosen = parse(StudyOptions, words, "study", page=PAGE)
    from ..studies import plan
    from ..studies.folder import StudyFolder

    StudyFolder.refuse_missing()
    folder = StudyFolder.begin(chosen.output, plan.read(chosen.file))
    try:
        found = folder.carry_out(chosen.workers or os.cpu_count() or 1, lambda text: print(visible(text), flush=True))
    except KeyboardInterrupt:
        print("stopped; the same command goes on")
        return 130
    for each in found["rewards"]:
        for budget, own in each["budgets"].items():
            _show(each["reward"], budget, own, found["study"]["score"], each["base"])
    print(visible(str(chosen.output / "study.json")))
    return 0


def _show(reward: str, budget: str, found: dict[str, Any], score: str, base: dict[str, Any]) -> None:
    from .tables import say, table

    rows = sorted(found["algorithms"].items(), key=lambda item: -item[1]["mean"])
    cells = []
    for name, own in rows:
        below = own["below_best"]
        behind = (
            f"{100 * below['mean']:+.1f} [{100 * below['low']:+.1f}, {100 * below['high']:+.1f}]" if below else "best"
        )
        reached = [each for each in own["to_target"] if each is not None]
        fast = f"{min(reached):,.0f} to {max(reached):,.0f}" if len(reached) == len(own["to_target"]) else "not reached"
        bad = f"{own['collapsed']} of {len(own['seeds'])}"
        cells.append(
            [name, f"{100 * own['mean']:.1f} [{100 * own['low']:.1f}, {100 * own['high']:.1f}]", behind, fast, bad]
        )
    columns = ["algorithm", f"{score}, %", "from the best", f"{budget} to {100 * found['target']:.1f} %", "below base"]
    title = f"{reward}: {found['amount']:,.0f} {budget}; the base model has {100 * base['mean']:.1f} %"
    say(table(columns, cells, title, right=columns[1:]))
