"""flowward agent pretrain"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...system.terminal import visible
from ..help import Page
from ..options import parse, set_threads

PAGE = Page(
    about="Make the supervised start of the built-in planner again, as the shipped one was made. It imitates a teacher "
    "that writes flawless plans but chooses badly, and takes about a minute on a CPU.",
    examples=(("agent pretrain --output runs/start", "then: flowward agent train --preset world --model runs/start"),),
)


@dataclass(frozen=True)
class Pretrain:
    """Make the supervised start of the built-in planner again."""

    output: Path = Path("runs/start")
    """write the model to this new folder"""
    seed: int = 0
    """random seed; equal seeds give equal models"""
    steps: int = 1500
    """training steps of 32 turns each; more follow if the planner does not copy numbers well enough"""
    threads: int | None = None
    """use this many CPU threads (default: torch's choice)"""


def run(words: list[str]) -> int:
    asked: Pretrain = parse(Pretrain, words, "agent pretrain", page=PAGE)
    if asked.output.exists() and (not asked.output.is_dir() or any(asked.output.iterdir())):
        raise ValueError(f"{asked.output} is not an empty folder: use another --output")
    from ...agent.pretrain import pretrain
    from ...system.threads import refuse_fewer

    set_threads(asked.threads)
    refuse_fewer()
    pretrain(asked.output, asked.seed, asked.steps, say=lambda line: print(visible(line), flush=True))
    print(visible(f"model: {asked.output}"))
    return 0
