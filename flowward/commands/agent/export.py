"""flowward agent export"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ...agent.planners import AGENT, write_agent
from ...system import whole_files
from ...system.terminal import visible
from .. import outputs
from ..help import Page
from ..options import parse

PAGE = Page(
    about="Write the trained planner of a run for transformers, peft, vLLM and SGLang: a LoRA adapter, or the whole "
    "model with its tokenizer if all weights were trained. A file agent.yaml beside it keeps the modules, tools and "
    "limits, for flowward agent solve and eval.",
    examples=(("agent export runs/agent --output planner", "then: flowward agent solve 'a question' --model planner"),),
)


@dataclass(frozen=True)
class Export:
    """Write the trained planner of a run."""

    run: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
    """run folder"""
    output: Path | None = None
    """write to this folder (default: planner in the run folder)"""
    overwrite: bool = False
    """replace files of an existing folder"""
    weights: Literal["policy", "ema"] = "policy"
    """write the trained `policy` or its `ema` average"""
    at: Annotated[int | Literal["best"] | None, tyro.conf.arg(metavar="ITERATION|best")] = None
    """use the checkpoint of this iteration (none: the newest)"""


def run(words: list[str]) -> int:
    asked: Export = parse(Export, words, "agent export", page=PAGE)
    if not (Path(asked.run) / "config.yaml").is_file():
        raise ValueError(f"{asked.run} is not a run folder (it has no config.yaml)")
    output = outputs.chosen(asked.output, Path(asked.run) / "planner", asked.overwrite)
    if output.exists() and any(output.iterdir()) and not (output / AGENT).is_file():
        raise ValueError(f"{output} is not an export, so it is not replaced: name another --output")
    from ...agent import trained
    from ...agent.config import of_agent

    settings = trained.settings_of(asked.run)
    language, _ = trained.load(asked.run, settings, asked.weights, asked.at)
    with whole_files.new_folder(output, replace=True) as partial:  # an earlier export, or an empty folder
        language.save(partial)
        write_agent(partial, of_agent(settings))
    print(visible(str(output)))
    return 0
