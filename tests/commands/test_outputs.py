"""One rule for outputs: a name that is taken is refused without --overwrite, and no name gets a free one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from extremes import Toy
from program import Refused

from flowward.cli import main
from flowward.commands import eval, outputs, sample
from flowward.training.record import Record

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (sample, eval):
        monkeypatch.setattr(module, "policy_of", lambda *_, **__: Toy())


def test_samples_get_names_of_their_own(refused: Refused, capsys: pytest.CaptureFixture[str]) -> None:
    how = ["sample", "scenes", "a circle", "--count", "1", "--steps", "2"]
    for _ in range(3):
        assert main(how) == 0
    assert sorted(path.name for path in Path().iterdir()) == ["sample-2.png", "sample-3.png", "sample.png"]
    assert "sample-3.png" in capsys.readouterr().out
    before = Path("sample.png").read_bytes()
    assert main([*how, "--seed", "1", "--overwrite"]) == 0
    assert Path("sample.png").read_bytes() != before and len(list(Path().iterdir())) == 3
    assert refused(*how, "--output", "sample-2.png") == "sample-2.png exists: name another --output, or say --overwrite"
    Path("folder.png").mkdir()
    assert "folder.png is a folder" in refused(*how, "--output", "folder.png")


def test_measurements_are_not_overwritten(refused: Refused) -> None:
    how = ["eval", "scenes", "--images", "4", "--steps", "1", "--rewards", "balance", "--json", "a.json"]
    assert main(how) == 0
    assert refused(*how) == "a.json exists: name another --json, or say --overwrite"
    Path("b.html").write_text("mine")
    assert refused(*how[:-1], "c.json", "--html", "b.html") == "b.html exists: name another --html, or say --overwrite"
    assert main([*how, "--overwrite"]) == 0


def test_exports_are_not_overwritten(run: Path, refused: Refused) -> None:
    for _ in range(2):
        assert main(["export", str(run)]) == 0
    kept = run / "export"
    assert (kept / "README.md").exists() and (run / "export-2" / "README.md").exists()
    assert "say --overwrite" in refused("export", run, "--output", kept)
    (kept / "old").write_text("of the earlier export")
    assert main(["export", str(run), "--output", str(kept), "--overwrite"]) == 0
    assert (kept / "README.md").exists() and not (kept / "old").exists()
    assert not list(run.glob(".*"))
    Path("mine").mkdir()
    Path("mine/file").write_text("not an export")
    assert "mine is not an export, so it is not replaced" in refused("export", run, "--output", "mine", "--overwrite")


def test_files_of_agents_follow_the_same_rule(refused: Refused, agent: Path) -> None:
    assert main(["agent", "eval", "world", "--episodes", "2", "--json", "a.json"]) == 0
    assert refused("agent", "eval", "world", "--json", "a.json") == (
        "a.json exists: name another --json, or say --overwrite"
    )
    assert main(["agent", "eval", "world", "--episodes", "2", "--json", "a.json", "--overwrite"]) == 0

    assert main(["agent", "prompts", "--output", "mine"]) == 0
    Path("mine/planner.txt").write_text("my own")
    assert "mine/planner.txt exists: name another --output" in refused("agent", "prompts", "--output", "mine")
    assert Path("mine/planner.txt").read_text() == "my own"
    assert main(["agent", "prompts", "planner", "--output", "mine", "--overwrite"]) == 0
    assert Path("mine/planner.txt").read_text() != "my own"

    for _ in range(2):
        assert main(["agent", "export", str(agent)]) == 0
    assert (agent / "planner" / "agent.yaml").exists() and (agent / "planner-2" / "agent.yaml").exists()
    assert "say --overwrite" in refused("agent", "export", agent, "--output", agent / "planner")
    (agent / "planner" / "old").write_text("of the earlier export")
    assert main(["agent", "export", str(agent), "--output", str(agent / "planner"), "--overwrite"]) == 0
    assert not (agent / "planner" / "old").exists() and not list(agent.glob(".*.partial"))
    assert "mine is not an export, so it is not replaced" in refused(
        "agent", "export", agent, "--output", "mine", "--overwrite"
    )

    assert refused("agent", "pretrain", "--output", "mine") == "mine is not an empty folder: use another --output"
    Path("null").symlink_to(os.devnull)
    for words in (["eval", "world", "--json", "null"], ["export", agent, "--output", "null"]):
        assert "null is a device, which is never replaced" in refused("agent", *words, "--overwrite")
    assert "null" in refused("agent", "pretrain", "--output", "null")
    assert "exists" in refused("agent", "prompts", "--output", "null").lower()
    assert Path("null").is_symlink()


@pytest.fixture
def agent(tmp_path: Path) -> Path:
    """The folder of an agent's run."""
    how = "--iterations 1 --questions-per-update 1 --group-size 2 --evaluation.episodes 2 --output"
    assert main(["agent", "train", *how.split(), str(tmp_path / "agent")]) == 0
    return tmp_path / "agent"


def test_a_device_is_never_replaced() -> None:
    Path("null").symlink_to(os.devnull)
    with pytest.raises(ValueError, match="null is a device"):
        outputs.refuse(Path("null"), overwrite=True)
    with pytest.raises(OSError, match="not a regular file"):
        Record(Path()).write_text("null", "text")
    assert Path("null").is_symlink()


@pytest.mark.parametrize("name", ["runs/nope", "./nope", "../nope", "/nope", "here/nope"])
def test_a_mistyped_path_is_not_looked_up_on_the_hub(name: str, refused: Refused) -> None:
    from flowward import models

    Path("here").mkdir()
    assert not models.is_pipeline(name) and models.is_pipeline("owner/nope")
    assert f"there is no file or folder {name}" in refused("train", "--model", name)


def test_a_mistyped_run_is_corrected(run: Path, refused: Refused) -> None:
    Path("runs").mkdir()
    run.rename("runs/first")
    assert (
        refused("train", "--model", "runs/frist") == "there is no file or folder runs/frist; did you mean runs/first?"
    )


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "train --help-all", "list rewards", "algorithms"])
def test_a_reader_that_leaves_is_no_error(words: str, unbuffered: str) -> None:
    """The pipe is closed before the first word comes."""
    read, write = os.pipe()
    os.close(read)
    more = {"PYTHONUNBUFFERED": unbuffered} if unbuffered else {}
    call = [sys.executable, "-m", "flowward", *words.split()]
    done = subprocess.run(
        call, stdout=write, stderr=subprocess.PIPE, text=True, env={**os.environ, **more}, check=False
    )
    os.close(write)
    assert done.stderr == "" and done.returncode == 141
