"""Options that the commands for a finished agent share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ...system.precision import Wish


@dataclass(frozen=True)
class Modules:
    """Which agent: everything that is not named is as in the run, or as the preset of the model."""

    preset: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """of a model that is no run: start from these settings, world or qwen2.5-7b (none: those of its export)"""
    tools: tuple[str, ...] | None = None
    """use these tools instead (none: those of the run)"""
    executor: str | None = None
    """use this executor instead: rule, same, or URL#MODEL (none: that of the run)"""
    verifier: str | None = None
    """use this verifier instead (none: that of the run)"""
    generator: str | None = None
    """use this generator instead (none: that of the run)"""
    analysis: str = ""
    """use this query analysis instead; `none` leaves it out (default: that of the run)"""
    templates: Path | None = None
    """use the prompts in this folder (none: those of the run)"""
    max_turns: int | None = None
    """most turns of an episode (none: as in the run)"""
    max_tokens: int | None = None
    """most tokens of one answer of the planner (none: as in the run)"""
    max_time: float | None = None
    """most seconds of an episode (none: as in the run)"""
    temperature: float | None = None
    """sample the planner at this temperature (none: as in the run)"""
    python_unconfined: bool | None = None
    """let the python tool run without isolation from this machine (none: as in the run)"""
    device: str | None = None
    """run on this device, e.g. cuda:1 (none: as in the run)"""
    precision: Wish | None = None
    """evaluate the network in this precision (none: as in the run)"""
