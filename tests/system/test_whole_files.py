"""A file is the old one or the new one, never a part; and only one module writes whole files."""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from flowward.system import whole_files

HOUSE = Path(whole_files.__file__).parents[1]
OWN = ("whole_files.py", "sandbox.py")  # the sandbox writes what lives in memory only: /proc, its own root
BY_HAND = re.compile(r"os\.replace\(|\.write_bytes\(|\bPath\S*\.write_text\(|open\([^)\n]*\"w[bt]?\"")


def test_text_and_bytes_come_back(tmp_path: Path) -> None:
    for content in ("naïve\n", b"\x00\xff"):
        whole_files.write(tmp_path / "x", content)
        assert (tmp_path / "x").read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("where", ["os.replace", "os.fsync", "pathlib.Path.write_text"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, shared: bool
) -> None:
    whole_files.write(tmp_path / "x", "old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space left"):
        patch.setattr(where, full)
        whole_files.write(tmp_path / "x", "new", shared)
    assert (tmp_path / "x").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_the_content_is_on_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order, sync, replace = list[str](), os.fsync, os.replace

    def synced(file: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
        sync(file)

    def replaced(one: Path, other: Path) -> None:
        order.append("named")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    whole_files.write(tmp_path / "x", "a")
    with whole_files.replacing(tmp_path / "y", durable=True) as partial:
        partial.touch()
    assert order == [".x.partial", "named", ".y.partial", "named", tmp_path.name]


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(OSError, match="it is not a regular file"):
        whole_files.write(Path(os.devnull), "x")


def test_many_writers_of_one_file_leave_one_whole_file(tmp_path: Path) -> None:
    contents = [letter * 100_000 for letter in "abcd"]
    threads = [threading.Thread(target=whole_files.write, args=(tmp_path / "x", each, True)) for each in contents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "x").read_text() in contents and len(list(tmp_path.iterdir())) == 1


def test_files_have_the_permissions_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        whole_files.write(tmp_path / "x", "a")
        with whole_files.replacing(tmp_path / "y") as partial:
            os.close(os.open(partial, os.O_CREAT, 0o600))  # as safetensors does
            whole_files.permit(partial)
    finally:
        os.umask(before)
    assert {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in "xy"} == {0o640}


def test_no_other_module_writes_files_by_hand() -> None:
    lines = [
        (path.name, line)
        for path in HOUSE.rglob("*.py")
        for line in path.read_text("utf-8").splitlines()
        if path.name not in OWN and BY_HAND.search(line) and "devnull" not in line
    ]
    assert lines == []
