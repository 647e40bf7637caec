"""Does any input end in a traceback? Random inputs by area (tests/fuzzing.py), as many as you like.

    python benchmarks/fuzz.py [--cases 10000] [--seed 0] [--only AREA ...]

Every input must give a value or one sentence, in at most ten seconds, and must not write outside its folder. Printed: a
line per area with the number of cases and the smallest input of each fault. Exit code 1 if there is one.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import hypothesis
from fuzzing import AREAS, Area, asked

SECONDS = 10.0  # for one input


def listing(folder: Path) -> set[str]:
    return set(os.listdir(folder))


def faults(area: Area, cases: int, seed: int) -> list[BaseException]:
    """The distinct faults that so many inputs show, each with its smallest input among its notes."""
    here = Path.cwd()

    @hypothesis.seed(seed)
    @asked(cases, report_multiple_bugs=True)
    @hypothesis.given(area.inputs)
    def one(value: Any) -> None:
        before, started = listing(here), time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            area.check(value, Path(folder))
        assert time.perf_counter() - started < SECONDS, "it took longer than ten seconds"
        assert listing(here) == before, "it wrote into the current folder"

    try:
        one()
    except BaseExceptionGroup as found:
        return list(found.exceptions)
    except Exception as found:
        return [found]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000, help="inputs per area")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=AREAS, default=list(AREAS))
    options = parser.parse_args()
    bad = 0
    for name in options.only:
        started = time.perf_counter()
        found = faults(AREAS[name], options.cases, options.seed)
        bad += len(found)
        print(
            f"{name}: {options.cases:,} cases, {len(found)} faults, {time.perf_counter() - started:.0f} s", flush=True
        )
        for each in found:
            print("".join(traceback.format_exception(each)[-3:]), *getattr(each, "__notes__", [])[:1], sep="\n")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
