"""Injected faults: what a user sees, what is saved, and that the same command then ends as if nothing had happened."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_rows import HOW, REMOTE, ROWS, SERVER, Row, page
from local_servers import free_port, scripted
from resumed_runs import assert_same, metrics, state

from flowward.cli import main
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
        one, two = ([{**line, "health": []} for line in metrics(folder)] for folder in (run, other))
        assert one == two


def test_the_page_is_what_the_rows_give() -> None:
    assert (DOCS / "faults.md").read_text("utf-8") == page()


def test_every_row_has_a_name_of_its_own() -> None:
    assert len({row.fault for row in ROWS}) == len(ROWS)
