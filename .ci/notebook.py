"""Run the code cells of notebooks in order, without a kernel: python .ci/notebook.py FILE ...

A cell that ends in an expression shows nothing. The first error ends with its traceback and exit code 1.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path


def run(file: Path) -> int:
    """All code cells in one namespace, as a kernel has it. Returns their number."""
    cells = json.loads(file.read_text("utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    given: dict[str, object] = {"__name__": "__main__"}
    for number, text in enumerate(code, start=1):
        exec(compile(text, f"{file.name}, code cell {number}", "exec"), given)
    return len(code)


if __name__ == "__main__":
    paths = [Path(name).resolve() for name in sys.argv[1:]]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for path in paths:
            start = time.perf_counter()
            print(f"{path.name}: {run(path)} cells, {time.perf_counter() - start:.1f} s")
        os.chdir(path.parent)
