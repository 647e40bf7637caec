"""How long does it take to read a long prompt file? CPU seconds of one process, without the start of Python.

    python benchmarks/prompt_files.py [--lines 1000000]

Writes a file of each kind into a temporary folder, with a category and metadata where the kind has them, and reads it
once. Printed: CPU seconds of reading, and megabytes of memory at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WORDS = "a small red circle on the left of a large blue square in the evening light"  # 15 words, as prompts have
KINDS = (".txt", ".jsonl", ".csv", ".parquet")


def rows(lines: int) -> Iterator[dict[str, Any]]:
    for number in range(lines):
        yield {"prompt": f"{WORDS}, number {number}", "category": f"kind {number % 6}", "n": number, "score": 0.5}


def write(path: Path, lines: int) -> None:
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows(lines))), path)
        return
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("prompt,category,n,score\n")
        for row in rows(lines):
            match path.suffix:
                case ".txt":
                    line = row["prompt"]
                case ".csv":
                    line = ",".join(f'"{value}"' for value in row.values())
                case _:
                    line = json.dumps(row)
            file.write(f"{line}\n")


def read(path: Path) -> None:
    from flowward import prompts

    start = time.process_time()
    found = prompts.load(str(path))
    seconds = time.process_time() - start
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{path.suffix:9} {len(found):,} prompts in {seconds:.1f} s, {most:,.0f} MB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lines", type=int, default=1_000_000)
    lines = parser.parse_args().lines
    fresh = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / f"prompts{kind}"
            for work in (fresh.Process(target=write, args=(path, lines)), fresh.Process(target=read, args=(path,))):
                work.start()
                work.join()


if __name__ == "__main__":
    main()
