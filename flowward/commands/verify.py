"""flowward verify"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro


@dataclass(frozen=True)
class Verify:
    """Hold algorithms to their laws: gradients, equivalences, minimisers and gains, against exact optima.

    Every algorithm is checked unless some are named. The exit code is 1 if a law is broken.
    """

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """algorithms of flowward"""
    algorithm: str | None = None
    """your own, as package.module:Class; held to the laws of the protocol, and measured against the exact optima"""
    output: Path | None = None
    """folder for verify.html and verify.json"""
    full: bool = False
    """print each law of the protocol, too"""


def run(words: list[str]) -> int:
    chosen = tyro.cli(Verify, args=words, prog="flowward verify")

    from .. import verify  # after the flags, so that --help does not wait for torch
    from ..algorithms import ALGORITHMS
    from ..verify import table

    others = {} if chosen.algorithm is None else {chosen.algorithm: verify.load(chosen.algorithm)}
    report = verify.verify(chosen.names or ([] if others else list(ALGORITHMS)), others)
    table.show(report, chosen.full)
    for path in table.write(report, chosen.output) if chosen.output else []:
        print(path)
    return 1 if report.failures else 0
