"""flowward verify"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from ..models.loading import Loading


@dataclass(frozen=True)
class Verify:
    """Hold algorithms to their laws: gradients, equivalences, minimisers and gains, against exact optima.

    Every algorithm is checked unless some are named. The exit code is 1 if a law is broken.
    """

    names: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME ...]")] = ()
    """algorithms of flowward"""
    algorithm: str | None = None
    """your own, as package.module:Class; held to the laws of the protocol, and measured against the exact optima"""
    model: str | None = None
    """a pipeline of diffusers (folder, or owner/name on the hub), held to itself: the same samples, LoRA, training"""
    loading: Annotated[Loading, tyro.conf.OmitArgPrefixes] = field(default_factory=Loading)
    output: Path | None = None
    """folder for verify.html and verify.json"""
    full: bool = False
    """print each law of the protocol, too"""


def run(words: list[str]) -> int:
    chosen = tyro.cli(Verify, args=words, prog="flowward verify")

    from .. import models, verify  # after the flags, so that --help does not wait for torch
    from ..algorithms import ALGORITHMS
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
    report = verify.verify(chosen.names or ([] if others else list(ALGORITHMS)), others)
    table.show(report, chosen.full)
    for path in table.write(report, chosen.output) if chosen.output else []:
        print(path)
    return 1 if report.failures else 0
