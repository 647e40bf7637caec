"""The files of examples/ as pages."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from .markdown import fenced, plain, table

FOLDER = "examples"
EXAMPLES = Path(__file__).parents[2] / "examples"


def _first(file: Path) -> str:
    """The first sentence of an example."""
    if file.suffix == ".ipynb":
        return "The first hour, as a notebook: train, look at the metrics, sample, compare, and add your own reward."
    told = ast.get_docstring(ast.parse(file.read_text("utf-8"))) or ""
    return " ".join(told.split("\n\n")[0].split())


def _script(file: Path) -> str:
    return f"# {file.name}\n\n{plain(_first(file))}\n\n{fenced(file.read_text('utf-8'), 'python')}\n"


def _notebook(file: Path) -> str:
    """Text and code of a notebook, without its results."""
    parts = []
    for each in json.loads(file.read_text("utf-8"))["cells"]:
        text = "".join(each["source"])
        parts.append(text if each["cell_type"] == "markdown" else fenced(text, "python"))
    return "\n\n".join(parts) + "\n"


def files() -> list[Path]:
    """Scripts and notebooks."""
    return sorted(file for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb"))


def pages() -> dict[str, str]:
    """A page per example, and their list."""
    listed = [[f"[{file.name}]({file.stem}.md)", plain(_first(file))] for file in files()]
    index = "\n\n".join(
        [
            "# Examples",
            "These files are in the folder `examples/` of the source code. The first lines of each say how to run it:",
            fenced("python examples/bare_loop.py"),
            table(["file", "what it shows"], listed),
        ]
    )
    made = {f"{FOLDER}/{file.stem}.md": (_notebook if file.suffix == ".ipynb" else _script)(file) for file in files()}
    return {f"{FOLDER}/index.md": index + "\n", **made}
