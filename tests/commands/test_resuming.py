"""One command line starts a run, and continues it: for jobs that a scheduler starts again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from program import BUDGET, Refused

from flowward.cli import main
from flowward.training.folder import RunFolder

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def words(tiny: str) -> list[str]:
    fixed = ["--precision", "float32", "--threads", "1", "--reward", "balance", "--model", tiny]
    return ["train", *BUDGET, *fixed, "--algorithm", "ddpo", "--iterations", "2", "--resume", "auto"]


def lines(run: Path) -> list[int]:
    return [json.loads(line)["iteration"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_the_same_words_start_a_run_and_continue_it(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    run = Path("job")
    assert main([*words, "--output", "job"]) == 0
    assert "job has not begun: starting it" in capsys.readouterr().out and lines(run) == [0, 1, 2]
    before = (run / "metrics.jsonl").read_bytes()
    assert main([*words, "--output", "job"]) == 0  # it has finished: nothing is left to do
    assert "job has begun: continuing it with its own settings" in capsys.readouterr().out
    assert (run / "metrics.jsonl").read_bytes() == before
    assert main([*words, "--output", "job", "--iterations", "3"]) == 0
    assert lines(run) == [0, 1, 2, 3]


def test_a_config_and_a_preset_are_for_the_start(words: list[str], tiny: str) -> None:
    Path("recipe.yaml").write_text("algorithm: {name: ddpo}\nrun: {seed: 7}\n")
    at = words.index("--algorithm")
    own = [*words[:at], "--config", "recipe.yaml", *words[at + 2 :], "--output", "job"]
    assert main(own) == main(own) == 0
    assert RunFolder.open(Path("job")).config()["run"]["seed"] == 7


def test_another_algorithm_is_refused(words: list[str], refused: Refused) -> None:
    assert main([*words, "--output", "job"]) == 0
    words[words.index("ddpo")] = "awm"
    said = "job was started with --algorithm ddpo, not awm: leave it out, or use another --output"
    assert refused(*words, "--output", "job") == said


def test_without_an_output_the_newest_unfinished_run_continues(run: Path, refused: Refused) -> None:
    said = "there is no unfinished run in runs/: name the folder of a new one with --output"
    assert refused("train", "--resume", "auto") == said
    for number, name in enumerate(("old", "new", "done")):
        shutil.copytree(run, Path("runs") / name)
        for path in Path("runs", name).iterdir():
            os.utime(path, (number, number))
    for name in ("old", "new"):
        config = Path("runs", name, "config.yaml")
        config.write_text(config.read_text().replace("iterations: 1", "iterations: 2"))
        os.utime(config, (1, 1) if name == "new" else (0, 0))
    assert main(["train", "--resume", "auto"]) == 0
    assert [lines(Path("runs", name)) for name in ("old", "new", "done")] == [[0, 1], [0, 1, 2], [0, 1]]
    assert main(["train", "--resume=auto"]) == 0
    assert lines(Path("runs/old")) == [0, 1, 2]
    assert refused("train", "--resume", "auto") == said


def test_runs_of_another_kind_are_left_to_their_own_command(run: Path, refused: Refused) -> None:
    shutil.copytree(run, Path("runs/mine"))
    config = Path("runs/mine/config.yaml")
    config.write_text("kind: agent\n" + config.read_text().replace("iterations: 1", "iterations: 2"))
    assert "there is no unfinished run" in refused("train", "--resume", "auto")
