"""Locale, time zone, terminal, umask, home and folders change no number; another processor changes them by rounding.

Each case starts it in a process of its own: train, report, eval, sample and export on a tiny model, in float32.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CODE = """
import sys
from flowward.cli import main

small = "--images-per-update 8 --group-size 4 --microbatch 8 --learning-rate 1e-2 --warmup 0 --iterations 2 "
small += "--algorithm.rollout.steps 2 --evaluation.images 6 --evaluation.sampler.steps 1 --reward balance"
for words in (
    f"train --model model --precision float32 --lora-rank 2 {small} --output run",
    "eval model run --images 6 --steps 1 --rewards balance jpeg-compressibility --json eval.json --html eval.html",
    "export run --merged",
    "eval run/export run/export/transformer --images 6 --steps 1 --rewards balance",
):
    assert main(words.split()) == 0, words
assert main(["sample", "run", "a red circle", "--steps", "2", "--count", "1"]) == 0
assert main(["sample", "run", "k\\u00f6ln \\u6728"]) == 2  # words that the model cannot read, nor a terminal show
"""


@dataclass(frozen=True)
class Surroundings:
    environment: Mapping[str, str | None] = field(default_factory=dict)  # None: not set; {here}: the folder
    umask: int = 0o022
    folder: str = "plain"


@dataclass(frozen=True)
class Found:
    metrics: list[dict[str, object]]  # of training, without times
    scores: dict[str, object]  # of `eval`, by model: a score of every image
    picture: bytes
    files: list[Path]


def started(tiny: str, above: Path, around: Surroundings) -> Found:
    """What the program leaves in a folder of its own."""
    here = above / around.folder
    here.mkdir(parents=True)
    shutil.copytree(tiny, here / "model")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    for name, value in around.environment.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value.replace("{here}", str(here))
    if folder := environment.get("TMPDIR"):
        Path(folder).mkdir(parents=True, exist_ok=True)
    before = os.umask(around.umask)
    try:
        done = subprocess.run([sys.executable, "-c", CODE], cwd=here, env=environment, capture_output=True)
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    written = (here / "run" / "metrics.jsonl").read_text("utf-8").replace(json.dumps(str(here))[1:-1], "HERE")
    lines = [json.loads(line) for line in written.splitlines()]
    measured = json.loads((here / "eval.json").read_text("utf-8"))["models"]
    for page in ("run/report.html", "eval.html", "run/export/README.md"):
        assert (here / page).read_text("utf-8")
    return Found(
        [{name: value for name, value in line.items() if name not in ("seconds", "speed")} for line in lines],
        {name: each["per_image"] for name, each in measured.items()},
        (here / "sample.png").read_bytes(),
        [path for path in (here / "run").rglob("*") if path.is_file()],
    )


@pytest.fixture(scope="module")
def plain(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Found:
    return started(tiny, tmp_path_factory.mktemp("plain"), Surroundings())


NARROW = {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "COLUMNS": "40", "HOME": "/dev/null", "TMPDIR": "{here}/tmp é 木"}
WIDE = {
    "TZ": "Pacific/Apia",
    "COLUMNS": "200",
    "HOME": None,
    "LC_ALL": "C",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONUTF8": "0",
}


@pytest.mark.parametrize(
    "around",
    [Surroundings(NARROW, 0o077, "a path/with spaces/and ünï木"), Surroundings(WIDE, 0o000)],
    ids=["narrow", "wide"],
)
def test_nothing_around_it_changes_a_number(around: Surroundings, tiny: str, plain: Found, tmp_path: Path) -> None:
    """To the bit; and files may be read by whom the umask lets read them."""
    found = started(tiny, tmp_path, around)
    assert (found.metrics, found.scores, found.picture) == (plain.metrics, plain.scores, plain.picture)
    assert {stat.S_IMODE(path.stat().st_mode) for path in found.files} == {0o666 & ~around.umask}


AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "OMP_NUM_THREADS": "2"}
NO_AVX = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41"}


@pytest.mark.parametrize("environment", [AVX2, NO_AVX], ids=["without AVX-512, two threads", "without AVX"])
def test_another_processor_changes_them_by_rounding(
    environment: dict[str, str], tiny: str, plain: Found, tmp_path: Path
) -> None:
    """Before the first update, whose AdamW steps of equal length turn a rounded zero of a gradient into one."""
    found = started(tiny, tmp_path, Surroundings(environment))
    assert [list(line) for line in found.metrics] == [list(line) for line in plain.metrics]
    first, expected = (each.metrics[1]["reward"] for each in (found, plain))
    assert first == pytest.approx(expected, abs=1e-4)
