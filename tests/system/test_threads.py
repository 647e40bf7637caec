"""CPU threads: how long they spin, whether OpenMP gives all of them, and whether they get a core."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from program import BUDGET
from tiny_runs import trainer

from flowward import models, rewards
from flowward.system import threads

SETTINGS = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_DYNAMIC", "OMP_THREAD_LIMIT")
SPINS = "import os; print(os.environ.get('GOMP_SPINCOUNT'))"


def python(code: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, with these settings alone."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    return subprocess.run([sys.executable, "-c", code], env=kept | settings, capture_output=True, text=True, check=True)


# How long threads spin


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "3000"),
        ({"GOMP_SPINCOUNT": "7"}, "7"),
        ({"GOMP_SPINCOUNT": ""}, ""),
        ({"OMP_WAIT_POLICY": "passive"}, "None"),
        ({"OMP_WAIT_POLICY": "active", "GOMP_SPINCOUNT": "7"}, "7"),
    ],
)
def test_threads_spin_for_a_short_time_unless_the_user_has_said_how_long(
    settings: dict[str, str], expected: str
) -> None:
    """In a child process too."""
    child = f'import flowward, subprocess, sys; subprocess.run([sys.executable, "-c", "{SPINS}"], check=True)'
    assert python(f"import flowward; {SPINS}", **settings).stdout == f"{expected}\n"
    assert python(child, **settings).stdout == f"{expected}\n"


def test_nothing_is_set_when_torch_would_not_read_it() -> None:
    assert python(f"import sys; sys.modules['torch'] = sys; import flowward; {SPINS}").stdout == "None\n"


@pytest.mark.skipif(sys.platform != "linux", reason="torch uses libgomp on Linux")
def test_it_is_set_before_torch_is_imported() -> None:
    """libgomp prints what it has read."""
    assert "GOMP_SPINCOUNT = '3000'" in python("import flowward.training.loop", OMP_DISPLAY_ENV="verbose").stderr


# Fewer threads than torch asks for


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """torch has two threads, and the environment no settings."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


DYNAMIC = "OMP_DYNAMIC=true makes torch compute wrong numbers when other programs are running: unset it, or set "
DYNAMIC += "OMP_NUM_THREADS=1"
LIMIT = "OMP_THREAD_LIMIT=1 makes torch compute wrong numbers with 2 threads: unset it, or set OMP_NUM_THREADS=1"


@pytest.mark.parametrize("words", [["train", *BUDGET], ["sample", "a circle"], ["eval"]])
def test_no_command_computes_with_fewer_threads(
    words: list[str], two: pytest.MonkeyPatch, elsewhere: None, refused: Callable[..., str], tiny: str
) -> None:
    model = [tiny] if words[0] in ("sample", "eval") else ["--model", tiny]
    two.setenv("OMP_DYNAMIC", "true")
    assert refused(words[0], *model, *words[1:]) == DYNAMIC
    two.delenv("OMP_DYNAMIC")
    two.setenv("OMP_THREAD_LIMIT", "1")
    assert refused(words[0], *model, *words[1:]) == LIMIT


def test_nor_do_rewards_pretraining_and_a_policy_of_ones_own(
    two: pytest.MonkeyPatch, tmp_path: Path, refused: Callable[..., str], tiny: str
) -> None:
    trained = trainer(tiny)
    two.setenv("OMP_DYNAMIC", "true")
    assert refused("pretrain", "scenes", "--output", tmp_path / "new") == DYNAMIC
    with pytest.raises(ValueError, match="OMP_DYNAMIC"):
        rewards.load("balance")
    with pytest.raises(ValueError, match="OMP_DYNAMIC"):
        type(trained)(trained.algorithm, trained.policy, trained.reward, trained.prompts, trained.run)


@pytest.mark.parametrize("value", ["true", "TRUE", " True ", "1", "yes", "on"])
def test_every_spelling_of_true_is_refused(value: str, two: pytest.MonkeyPatch) -> None:
    two.setenv("OMP_DYNAMIC", value)
    with pytest.raises(ValueError, match="OMP_DYNAMIC"):
        threads.refuse_fewer()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMP_DYNAMIC", ""),
        ("OMP_DYNAMIC", "false"),
        ("OMP_DYNAMIC", "maybe"),
        ("OMP_THREAD_LIMIT", "2"),
        ("OMP_THREAD_LIMIT", "0"),  # which libgomp ignores
        ("OMP_THREAD_LIMIT", "few"),
    ],
)
def test_harmless_settings_are_not(name: str, value: str, two: pytest.MonkeyPatch) -> None:
    two.setenv(name, value)
    threads.refuse_fewer()


def test_one_thread_is_always_there(two: pytest.MonkeyPatch, tiny: str) -> None:
    two.setattr(torch, "get_num_threads", lambda: 1)
    two.setenv("OMP_DYNAMIC", "true")
    two.setenv("OMP_THREAD_LIMIT", "1")
    models.load(tiny, precision="float32")
    rewards.load("balance")


# Whether threads get a core


def counts(folder: Path, *each: tuple[float, float]) -> None:
    """Threads that have run, and waited for a core, for so many seconds, as Linux writes it."""
    for number, (ran, waited) in enumerate(each):
        (folder / str(number)).mkdir(exist_ok=True)
        (folder / str(number) / "schedstat").write_text(f"{ran * 1e9:.0f} {waited * 1e9:.0f} 12\n")


@pytest.mark.parametrize(
    ("after", "share"),
    [
        ([(6, 4), (3, 4)], 1.0),  # the second had nothing to do, for however long
        ([(8, 4), (5, 6)], 5 / 7),
        ([(5, 8), (3, 4)], 0.0),
        ([(5.3, 4.1), (3, 4)], None),  # too short to say
    ],
)
def test_the_share_is_of_the_time_that_threads_wanted_to_run(
    after: list[tuple[float, float]], share: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "TASKS", str(tmp_path))
    counts(tmp_path, (5, 4), (3, 4))
    with threads.watched() as cores:
        counts(tmp_path, *after)
    assert cores.share == (None if share is None else pytest.approx(share))


def test_where_the_system_does_not_count_there_is_no_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TASKS", str(tmp_path))
    (tmp_path / "1").mkdir()  # a kernel without schedstat
    with threads.watched() as cores:
        pass
    assert cores.share is None
    monkeypatch.setattr(threads, "TASKS", str(tmp_path / "none"))
    with threads.watched() as cores:
        pass
    assert cores.share is None


def test_threads_that_end_meanwhile_leave_no_nonsense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "TASKS", str(tmp_path))
    counts(tmp_path, (5, 4), (3, 4))
    with threads.watched() as cores:
        counts(tmp_path, (20, 4))
        (tmp_path / "1" / "schedstat").unlink()
    assert cores.share is None


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="this kernel does not count")
def test_work_of_this_process_is_counted() -> None:
    before = time.process_time()
    with threads.watched() as cores:
        while time.process_time() < before + 1.5 * threads.ENOUGH:
            pass
    assert cores.share is not None and 0 < cores.share <= 1
