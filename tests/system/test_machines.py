"""Processes of a run on two machines: who does what once for each machine, and whether they see the same folder."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import together
from resumed_runs import BUDGET, train

from flowward.commands import running
from flowward.system import distributed, launching, shared_folders
from flowward.system.distributed import first_here, machine, machines
from flowward.system.shared_folders import refuse_apart

MACHINES = (0, 0, 1)  # of each process


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    return condition()


def encoded(number: int, where: Path) -> list[Any]:
    """What each process finds when its turn comes; the first of a machine needs that of the other at the same time."""
    with first_here():
        done = sorted(path.name for path in where.glob("done.*"))
        (where / f"begun.{number}").touch()
        if number != 1:
            assert until(lambda: (where / f"begun.{2 - number}").exists())
        (where / f"done.{number}").touch()
    return done


def refused(folder: Path, contents: Callable[[], object] = lambda: None) -> str:
    try:
        refuse_apart(folder, contents)
    except ValueError as error:
        return str(error)
    return ""


def process(number: int, where: str, port: int) -> None:
    around = {"RANK": number, "WORLD_SIZE": len(MACHINES), "LOCAL_RANK": number % 2, "MASTER_PORT": port}
    around |= {"GROUP_RANK": MACHINES[number], "GROUP_WORLD_SIZE": 2}
    os.environ |= {name: str(value) for name, value in around.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "x"}
    place = Path(where)
    with launching.joined():
        found: dict[str, Any] = {"machine": [machine(), machines()], "turn": encoded(number, place)}
        here = place / f"disk{machine()}"
        here.mkdir(exist_ok=True)
        found["shared"] = [refused(place / "runs/new"), refused(place)]
        late = time.monotonic() + machine()
        found["late"] = refused(place, lambda: time.monotonic() > late)
        shared_folders.SIGHT = 0.1
        found["apart"] = refused(here / "run")
        found["older"] = refused(place, machine)
    (place / f"{number}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    where = tmp_path_factory.mktemp("machines")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together(process, (str(where), port), len(MACHINES))
    assert not list(where.rglob(".*"))  # nothing is left of the files that were made to be seen
    return [json.loads((where / f"{number}.json").read_text()) for number in range(len(MACHINES))]


def test_the_first_process_of_each_machine_begins(results: list[dict[str, Any]]) -> None:
    """Both at once; the other one follows when both have done it."""
    assert [each["machine"] for each in results] == [[number, 2] for number in MACHINES]
    assert results[1]["turn"] == ["done.0", "done.2"]
    assert not any("done.1" in each["turn"] for each in results)


def test_a_folder_that_all_machines_see_is_accepted(results: list[dict[str, Any]]) -> None:
    """Also one that does not exist yet, and one in which a network file system shows new files late."""
    assert [each["shared"] for each in results] == [["", ""]] * 3
    assert [each["late"] for each in results] == [""] * 3


def test_a_machine_that_sees_another_folder_ends_all(results: list[dict[str, Any]]) -> None:
    """One that has nothing of it, and one that has an older copy."""
    host = socket.gethostname()
    for each in results:
        for what in ("apart", "older"):
            assert each[what].startswith(f"{host} does not see what {host} sees in ")
            assert "needs a folder that all of them share" in each[what]


def test_a_stopped_run_names_a_command_that_fits_its_machines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "count", lambda: 16)
    assert running._again("train", "my run") == "flowward train --resume 'my run' --processes 16"
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    again = running._again("train", "my run")
    assert again == "the same torchrun command on every machine, with --resume 'my run'"


def test_on_one_machine_nothing_is_tried(tmp_path: Path) -> None:
    refuse_apart(tmp_path / "none", lambda: pytest.fail("looked into it"))
    assert not list(tmp_path.iterdir())


def test_a_run_compares_its_folder_before_it_begins(tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = list[Any]()
    monkeypatch.setattr(shared_folders, "refuse_apart", lambda folder, contents: seen.append((folder, contents())))
    run = tmp_path / "run"
    train(*BUDGET, "--precision", "float32", "--model", tiny, "--iterations", "1", "--output", run)
    train("--resume", run)
    assert seen == [(run, (False, "")), (run, (True, "000001.safetensors"))]
