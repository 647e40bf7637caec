"""flowward demo"""

from __future__ import annotations

import shlex
from pathlib import Path

from ..system.terminal import visible
from ..training.record import Record
from . import train
from .help import Option, Page, Shown, show
from .options import asks_help, take

OUTPUT = Path("runs/demo")
PAGE = Page(
    about="Train the built-in model and write a report: the first thing to try. It needs no GPU, no account and no "
    "download, and takes under ten minutes on a laptop. A demo that was stopped goes on. Options of `flowward train` "
    "can be added.",
    examples=(
        ("demo", "train into runs/demo, and write runs/demo/report.html"),
        ("demo --output runs/short --iterations 10", "a shorter one, into another folder"),
    ),
)
OPTIONS = (Option("output", "FOLDER", f"write to this folder (default: {OUTPUT})"),)


def run(words: list[str]) -> int:
    if asks_help(words):
        print(show(PAGE, "demo", OPTIONS, full=False))
        raise Shown(PAGE, OPTIONS)
    given, more = take(words, "output")
    output = Path(given or OUTPUT)
    if (output / "config.yaml").is_file():
        if Record.open(output).summary().get("finished"):
            print(visible(f"The demo in {output} is finished; for another one: flowward demo --output runs/another"))
            return _ended(output)
        code = train.run(["--resume", "auto", "--output", str(output), *more])
    else:
        code = train.run(["--output", str(output), *more])
    return code or _ended(output)


def _ended(output: Path) -> int:
    print(visible(f"Open {output / 'report.html'} in a browser. Next, draw pictures with the trained model:"))
    print(visible(f"  {shlex.join(['flowward', 'sample', str(output), 'a red circle', '--count', '8'])}"))
    return 0
