"""Injected faults: what a user sees, what is saved, and that the same command then ends as if nothing had happened."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_rows import HOW, REMOTE, ROWS, SERVER, Row, page
from faults import full_disk, read_only
from local_servers import free_port, scripted
from program import Refused
from resumed_runs import assert_same, metrics, state

from flowward.cli import main
from flowward.export import weights
from flowward.rewards.judges.answers import Answers
from flowward.system import checkpoint
from flowward.training.folder import RunFolder

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def at() -> Iterator[str]:
    with scripted(SERVER) as address:
        yield address


@pytest.fixture(scope="module")
def whole(tiny: str, at: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Runs that no fault met, made once for each command."""
    made: dict[str, Path] = {}

    def run(words: str) -> Path:
        if words not in made:
            made[words] = tmp_path_factory.mktemp("whole") / "run"
            assert main([*told(words, tiny, at), "--output", str(made[words])]) == 0
        return made[words]

    return run


def told(command: str, tiny: str, at: str, pipeline: str = "", patience: str = "30") -> list[str]:
    closed = f"http://127.0.0.1:{free_port()}" if "{closed}" in command else ""
    name, *words = command.format(server=at, closed=closed, pipeline=pipeline, patience=patience).split()
    if name != "train":
        return [name, *words]
    reward = [] if "--reward" in words else ["--reward", "balance"]
    return [name, *HOW, "--model", tiny, *reward, *words]


def plain(said: str) -> str:
    """Without what differs from one machine to the next."""
    said = re.sub(r"http://127\.0\.0\.1:\d+", "http://gpu1:8000", said)
    said = re.sub(r"--port \d+", "--port 8000", said)
    said = re.sub(r"(scoring|for the prompt) '[^']+'", r"\1 'PROMPT'", said)
    said = re.sub(r"\b[0-9a-f]{16,40}\b", "HASH", said)
    return said.replace(str(Path.cwd()), "{here}")


def newest() -> int | None:
    saved = RunFolder(Path("run")).checkpoints()
    return int(saved[-1].stem) if saved else None


@pytest.mark.usefixtures("elsewhere", "hasty")
@pytest.mark.parametrize("row", ROWS, ids=[row.fault for row in ROWS])
def test_fault(
    row: Row,
    tiny: str,
    at: str,
    whole: Callable[[str], Path],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("flowward.models.diffusers.CACHE", Path("cache"))
    pipeline = str(request.getfixturevalue("saved")) if "{pipeline}" in row.command else ""
    if row.begun:
        shutil.copytree(whole("train --checkpoint-every 1 --iterations 1"), "run")
    patience = "0.2" if "0.2 s" in row.sees else "30"
    words = told(row.command, tiny, at, pipeline, patience)
    capfd.readouterr()
    with row.inject() as struck:
        code = main(words)
    out, err = map(plain, capfd.readouterr())
    assert struck, f"the fault has met nothing: {err}"
    if code == 2:
        assert err.splitlines()[-1] == f"flowward: {row.sees}"
    else:
        assert row.sees in out + err
    assert (code, newest()) == (row.code, row.left)
    assert not [path for path in Path().rglob(".*") if path.is_file()]
    if "--json" in words:
        assert "overall" in out
    assert main(told(row.command.replace("{closed}", "{server}"), tiny, at, pipeline)) == 0
    assert row.then in "".join(capfd.readouterr())
    if words[0] == "train" and row.like != "-" and "run/new" not in words:
        remote = REMOTE if "remote" in words else ""
        compare(Path("run"), whole(f"train --checkpoint-every 1 {row.like} {remote}"), row.metrics)


def compare(run: Path, other: Path, also_metrics: bool) -> None:
    """The same weights, optimiser and metrics, to the bit."""
    assert_same(state(run), state(other))
    if also_metrics:
        repeated = {"health": [], "network_evaluations": 0}  # passes that were repeated count
        one, two = ([{**line, **repeated} for line in metrics(folder)] for folder in (run, other))
        assert one == two


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("processes", ["1", "2"])
def test_an_output_that_cannot_be_used_is_refused_before_the_model_is_loaded(
    tiny: str, refused: Refused, processes: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object, **__: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr("flowward.models.load", load)
    monkeypatch.setattr("flowward.system.launching.launch", load)
    Path("run").mkdir()
    with read_only("run"):
        said = refused(*told("train --output run/new", tiny, ""), "--processes", processes)
    assert said.endswith("it is read-only, or you have no permission; use another --output")
    Path("run/mine.txt").touch()
    said = refused(*told("train --output run", tiny, ""), "--processes", processes)
    assert said == "run is not an empty folder: use another --output"


def test_a_read_only_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a disk also refuses to delete what is not there."""
    monkeypatch.chdir(tmp_path)
    Path("disk").mkdir()
    said = r"^cannot write disk/x.safetensors: Read-only file system$"
    with read_only("disk"), pytest.raises(OSError, match=said):
        checkpoint.save(Path("disk/x.safetensors"), {})


def test_answers_that_cannot_be_stored_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    answers = Answers(Path("answers"))
    with full_disk("answers/*") as struck:
        answers.put("abc", 0.5, "yes")
    assert struck and not [path for path in Path("answers").rglob("*") if path.is_file()]
    answers.put("abc", 0.5, "yes")
    assert answers.get("abc") == 0.5


def test_a_failed_export_leaves_the_folder_as_it_was(tmp_path: Path) -> None:
    """The folder itself was there before, with a file of somebody else."""
    (tmp_path / "mine.txt").touch()
    with (
        pytest.raises(OSError, match=f"cannot write {tmp_path}: no; nothing was written there"),
        weights.whole(tmp_path),
    ):
        (tmp_path / "transformer").mkdir()
        (tmp_path / "transformer" / "config.json").touch()
        (tmp_path / "README.md").touch()
        raise OSError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_page_is_what_the_rows_give() -> None:
    assert (DOCS / "faults.md").read_text("utf-8") == page()


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({row.fault for row in ROWS}) == len(ROWS)
