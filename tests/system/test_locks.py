"""A folder has one writer, on every system, and a writer that dies gives it back."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import filelock  # before fcntl is hidden: it chooses its own kind of lock when it is imported
import pytest

from flowward.commands import resuming
from flowward.system import locks
from flowward.training.folder import RunFolder

HOLD = """
import sys
import threading
import filelock
if sys.argv[2] == "file":
    sys.modules["fcntl"] = None
from pathlib import Path
from flowward.commands import resuming
from flowward.system import locks
with locks.held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(params=["folder", "file"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The lock of a folder, and the one of Windows: a file in it."""
    if request.param == "file":
        monkeypatch.setitem(sys.modules, "fcntl", None)
    return str(request.param)


def test_a_second_holder_is_refused_until_the_first_has_left(tmp_path: Path, kind: str) -> None:
    with locks.held(tmp_path), pytest.raises(BlockingIOError), locks.held(tmp_path):
        pass
    with locks.held(tmp_path):
        pass
    assert [path.name for path in tmp_path.iterdir()] == [locks.LOCK] * (kind == "file")


def test_an_error_inside_is_its_own(tmp_path: Path, kind: str) -> None:
    with pytest.raises(BlockingIOError, match="mine"), locks.held(tmp_path):
        raise BlockingIOError("mine")
    with locks.held(tmp_path):
        pass


def test_a_killed_process_gives_it_back(tmp_path: Path, kind: str) -> None:
    words = [sys.executable, "-c", HOLD, str(tmp_path), kind]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError), locks.held(tmp_path):
            pass
        other.kill()
        other.wait()
        with locks.held(tmp_path):
            pass


def test_without_locks_the_folder_can_be_used(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without them, or one that is read-only."""

    def refuse(*_: object) -> None:
        raise OSError(30, os.strerror(30))

    if kind == "file":
        monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    else:
        monkeypatch.setattr("fcntl.flock", refuse)
    with locks.held(tmp_path), locks.held(tmp_path):
        pass


def test_a_new_run_begins_in_a_folder_with_the_lock_of_another_system(tmp_path: Path, kind: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / locks.LOCK).touch()
    folder = RunFolder.create(tmp_path / "run", {"model": "scenes"})
    with folder.held(), pytest.raises(ValueError, match="a run is still writing"), RunFolder(folder.path).held():
        pass


def held_twice_after_deletion(take: Callable[[], None], lock: Path) -> bool:
    """Whether a second holder gets a lock whose file was deleted while the first has it."""
    lock.unlink(missing_ok=True)
    try:
        take()
    except BlockingIOError:
        return False
    return True


def test_no_file_can_be_deleted_to_open_the_lock_of_a_folder(tmp_path: Path) -> None:
    """Why the folder itself is locked where that is possible (docs/notes/libraries.md)."""
    with locks.held(tmp_path):
        assert not held_twice_after_deletion(lambda: locks._taken(tmp_path)(), tmp_path / locks.LOCK)
    release = locks._taken_file(tmp_path / locks.LOCK)
    assert held_twice_after_deletion(lambda: locks._taken_file(tmp_path / locks.LOCK)(), tmp_path / locks.LOCK)
    release()


def test_a_restarted_run_waits_for_the_end_of_its_old_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first process does, for so long; the others wait for that one."""
    run = RunFolder.create(tmp_path / "run", {}).path
    with subprocess.Popen([sys.executable, "-c", HOLD, str(run), "folder"], stdin=-1, stdout=-1, text=True) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with monkeypatch.context() as patch:
            patch.setattr(resuming, "LEASE", 0.5)
            with pytest.raises(ValueError, match=r"a run is still writing to .*: stop it first"):
                resuming.wait_for_end(run)
            patch.setenv("RANK", "1")
            resuming.wait_for_end(run)
        said = capsys.readouterr().err
        assert said == f"flowward: a process is still writing to {run}: waiting up to 0 seconds for its end\n"
        threading.Timer(0.5, other.kill).start()
        resuming.wait_for_end(run)
    assert capsys.readouterr().err.count("waiting up to 100 seconds for its end") == 1
