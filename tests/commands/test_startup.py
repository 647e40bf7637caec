"""Nobody waits for a library that is not used: what a command loads, by `sys.modules` and not by the clock."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from program import BUDGET, alone
from watched_runs import made

from flowward.commands import every as every_command

HEAVY = (
    "torch",
    "torch._dynamo",
    "sympy",
    "diffusers",
    "transformers",
    "peft",
    "accelerate",
    "scipy",
    "jinja2",
    "fastapi",
)
TORCH = {"torch"}  # settings of samplers and algorithms are written in its terms
LOADED: dict[str, set[str]] = {
    "demo": TORCH,
    "train": TORCH,
    "sample": TORCH,
    "eval": TORCH,
    "front": TORCH,
    "memory": TORCH,
    "bench": TORCH,
    "export": set(),
    "report": set(),
    "watch": set(),
    "study": set(),
    "compare": set(),
    "advise": set(),
    "algorithms": set(),
    "list": set(),
    "pretrain": set(),
    "verify": set(),
    "serve-reward": set(),
    "agent train": TORCH,
    "agent solve": set(),
    "agent eval": set(),
    "agent export": set(),
    "agent prompts": set(),
    "agent pretrain": set(),
}
PROGRAM = """
import sys
from flowward.cli import main
try:
    print(main(sys.argv[1:]))
except SystemExit as end:
    print(end.code)
"""
SHOW = f"\nimport json, sys\nprint(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"

MARK = "after it: "
EACH = f"""
import json, sys
from flowward.cli import main
for line in sys.argv[1:]:
    try:
        code = main(line.split())
    except SystemExit as end:
        code = end.code or 0
    print({MARK!r} + json.dumps([code, [name for name in {HEAVY!r} if name in sys.modules]]))
"""


def loaded(code: str, *words: str, ends: int | None = None) -> set[str]:
    """The heavy libraries that are there after some code; `ends` is the exit code that a program must have."""
    *_, before, last = ["", *alone(code + SHOW, *words)[0].splitlines()]
    assert ends is None or int(before) == ends
    return set(json.loads(last))


MISSPELT = ("train", "eval", "report", "agent train", "agent solve", "agent eval", "agent prompts")
LIGHT = {  # what needs no torch
    "algorithms": set[str](),
    "algorithms advantageflow": set[str](),
    "list rewards": set[str](),
    "list prompts": set[str](),
    "agent --help": set[str](),
    "agent slove": set[str](),
    "agent prompts planner": {"jinja2"},
}
LINES = {
    **{f"{command} --help": needed for command, needed in LOADED.items()},
    **{f"{command} --itertions 3": LOADED[command] for command in MISSPELT},
    **LIGHT,
}


@pytest.fixture(scope="module")
def after_each() -> dict[str, tuple[int, set[str]]]:
    """The exit code of each command line, and what is loaded after it.

    One process for all that load the same, one after another: none of them may load more.
    """
    found = dict[str, tuple[int, set[str]]]()
    for needed in (set[str](), {"jinja2"}, TORCH):
        lines = [line for line in LINES if LINES[line] == needed]
        said = alone(EACH, *lines)[0].splitlines()
        told = [json.loads(line.removeprefix(MARK)) for line in said if line.startswith(MARK)]
        found |= {line: (code, set(loaded)) for line, (code, loaded) in zip(lines, told, strict=True)}
    return found


@pytest.mark.parametrize("command", LOADED)
def test_help_loads_no_library_to_explain_options(command: str, after_each: dict[str, tuple[int, set[str]]]) -> None:
    assert after_each[f"{command} --help"] == (0, LOADED[command])


def test_every_command_is_asked() -> None:
    assert LOADED.keys() == every_command().keys()


@pytest.mark.parametrize("command", MISSPELT)
def test_a_misspelt_option_is_refused_as_fast(command: str, after_each: dict[str, tuple[int, set[str]]]) -> None:
    assert after_each[f"{command} --itertions 3"] == (2, LOADED[command])


@pytest.mark.parametrize("words", LIGHT)
def test_lists_and_prompts_are_shown_without_torch(words: str, after_each: dict[str, tuple[int, set[str]]]) -> None:
    assert after_each[words] == (2 if "slove" in words else 0, LIGHT[words])


@pytest.mark.parametrize(
    "code",
    [
        "import flowward",
        "from flowward import prompts\nprompts.load('geneval').draw(0, 0, 8)",
        "from flowward.pages import report",
        "from flowward.models import load",
    ],
)
def test_what_computes_nothing_needs_no_torch(code: str) -> None:
    assert loaded(code) == set()


def test_lists_of_prompts_are_read_without_torch(tmp_path: Path) -> None:
    """Files too, where rows name images to edit."""
    from PIL import Image

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "edits.jsonl").write_text('{"prompt": "make it red", "source": "a.png"}\n')
    assert (
        loaded("import sys\nfrom flowward import prompts\nprompts.load(sys.argv[1])", str(tmp_path / "edits.jsonl"))
        == set()
    )


def test_a_report_needs_templates_alone(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": "scenes", "algorithm": {"name": "awm"}}))
    lines = [{"iteration": k, "reward": k / 8, "health": [], "seconds": {"total": 1.0}} for k in range(4)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert loaded(PROGRAM, "report", str(tmp_path), ends=0) == {"jinja2"}
    assert 'class="chart"' in (tmp_path / "report.html").read_text("utf-8")


def test_runs_are_compared_and_watched_without_torch(tmp_path: Path) -> None:
    for name in ("one", "two"):
        made(tmp_path / "runs" / name)
    words = ["compare", str(tmp_path / "runs"), "--output", str(tmp_path / "compare.html")]
    assert loaded(PROGRAM, *words, ends=0) == {"jinja2"}
    served = "from flowward.pages.watch import folder, server\nimport pathlib, sys\n"
    served += "server.application(folder.Folder(pathlib.Path(sys.argv[1])), None)"
    assert loaded(served, str(tmp_path / "runs")) == {"jinja2", "fastapi"}
    assert loaded(PROGRAM, "watch", str(tmp_path / "gone"), ends=2) == set()


def test_training_without_adapters_asks_for_no_library_of_adapters(tiny: str, tmp_path: Path) -> None:
    """It goes as well where peft, transformers and accelerate are not there. (Diffusers loads them where they are.)"""
    without = "import sys\nsys.modules |= dict.fromkeys(['peft', 'transformers', 'accelerate'])\n"
    words = [*BUDGET, "--model", tiny, "--reward", "balance", "--iterations", "1", "--precision", "float32"]
    said, _ = alone(without + PROGRAM, "train", *words, "--output", str(tmp_path / "run"))
    assert said.splitlines()[-1] == "0"
