"""Processes of a run on one machine: how they are started, reached by signals, and how they end."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from flowward.system import launching


@pytest.mark.parametrize("many", [257, 10**30])
def test_more_processes_than_a_machine_can_run_are_refused_before_one_starts(
    many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "Popen", lambda *_, **__: pytest.fail("a process was started"))
    with pytest.raises(ValueError, match="at most 256 processes"):
        launching.launch(many, ["train"])


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What each process of `launch` does, in the place of Python."""

    def write(script: str) -> None:
        program = tmp_path / "program"
        program.write_text(f"#!/bin/sh\ncd {tmp_path}\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(program))

    return write


def test_the_store_of_the_processes_is_for_this_machine_alone(shell: Callable[[str], None], tmp_path: Path) -> None:
    """Whoever reaches it could make the processes load pickles."""
    shell("env > said.$RANK; while [ ! -e enough ]; do sleep 0.02; done")
    found: set[Any] = set()

    def listening() -> set[Any]:
        return {each.laddr for each in psutil.Process().net_connections("inet") if each.status == psutil.CONN_LISTEN}

    def look() -> None:
        while len(list(tmp_path.glob("said.*"))) < 2:
            time.sleep(0.02)
        found.update(listening() - before)
        (tmp_path / "enough").touch()

    before = listening()
    threading.Thread(target=look).start()
    assert launching.launch(2, ["train"]) == 0
    assert [each.ip for each in found] == ["127.0.0.1"]
    assert sys.platform != "linux" or "GLOO_SOCKET_IFNAME=lo\n" in (tmp_path / "said.0").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_every_process(shell: Callable[[str], None], tmp_path: Path, number: signal.Signals) -> None:
    """Also where nothing but the one that started them gets it; each ends in its own time."""
    shell("trap 'sleep 0.3; touch saved.$RANK; exit 130' INT TERM; touch ready.$RANK; while :; do sleep 0.02; done")

    def send() -> None:
        while len(list(tmp_path.glob("ready.*"))) < 3:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=send).start()
    assert launching.launch(3, ["train"]) == 130
    assert {path.name for path in tmp_path.glob("saved.*")} == {"saved.0", "saved.1", "saved.2"}
    assert signal.getsignal(number) is before


def test_when_one_process_ends_the_others_may_save(
    shell: Callable[[str], None], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shell("[ $RANK = 1 ] && kill -9 $$; sleep 0.3; touch saved.$RANK; exit 2")
    assert launching.launch(2, ["train"]) == 128 + signal.SIGKILL
    assert (tmp_path / "saved.0").exists()
    assert capfd.readouterr().err == "flowward: process 1 was killed by signal 9\n"
    shell("[ $RANK = 1 ] && exit 2; exec sleep 60")
    monkeypatch.setattr(launching, "GRACE", 0.1)
    assert launching.launch(2, ["train"]) == 2  # the other one hangs, and is not waited for
