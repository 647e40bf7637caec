"""flowward verify"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..models.loading import Loading
from .help import Page
from .options import parse

PAGE = Page(
    about="Test algorithms against exact results: gradients, equivalences, minimisers, and optima of problems with "
    "closed forms. All algorithms, for images and agents, are tested unless you name some. The exit code is 1 if a "
    "check fails.",
    examples=(
        ("verify advantageflow flow_grpo", "two of the built-in algorithms"),
        ("verify agentflow", "the algorithm for agents"),
        ("verify --algorithm package.module:Class", "your own algorithm"),
        ("verify --model owner/name --size 512 512", "a model against its own diffusers pipeline"),
    ),
    first=("algorithm", "model", "output", "full", "size", "device"),
)


@dataclass(frozen=True)
class Verify:
    """Test each algorithm against exact results."""

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """built-in algorithms, or agentflow (default: all)"""
    algorithm: str | None = None
    """your own algorithm, as package.module:Class"""
    model: str | None = None
    """compare this model with its diffusers pipeline (folder or owner/name)"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    output: Path | None = None
    """folder to write verify.html and verify.json to"""
    full: bool = False
    """print every single check"""


def run(words: list[str]) -> int:
    chosen = parse(Verify, words, "verify", page=PAGE)

    from .. import models, verify  # after the flags, so that --help does not wait for torch
    from ..verify import table

    if chosen.model is not None:
        if chosen.names or chosen.algorithm:
            raise ValueError("a model is verified alone: name no algorithm beside it")
        report = verify.verify_model(models.load(chosen.model, 4, "float32", loading=chosen.loading))
        table.show(report, full=True)
        for path in table.write(report, chosen.output) if chosen.output else []:
            print(path)
        return 1 if report.failures else 0
    others = {} if chosen.algorithm is None else {chosen.algorithm: verify.load(chosen.algorithm)}
    report = verify.verify(chosen.names or ([] if others else verify.NAMES), others)
    table.show(report, chosen.full)
    for path in table.write(report, chosen.output) if chosen.output else []:
        print(path)
    return 1 if report.failures else 0
