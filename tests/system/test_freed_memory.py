"""Blocks that are freed and asked for again stay with the process."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from flowward.system import freed_memory

CODE = """
import torch
from flowward.system import freed_memory
told = freed_memory.keep() if {kept} else ''
def resident():
    return int(open('/proc/self/statm').read().split()[1]) * 4 // 1024  # MiB, in pages of 4 kB
before = resident()
blocks = [torch.ones(20 << 18) for _ in range(4)]  # of 20 MiB
del blocks
print(resident() - before, told)
"""


def ran(kept: bool, **environment: str) -> tuple[int, str]:
    given = {name: value for name, value in os.environ.items() if name not in freed_memory.CHOSEN} | environment
    code = CODE.format(kept=kept)
    done = subprocess.run([sys.executable, "-c", code], env=given, capture_output=True, text=True, check=True)
    held, _, told = done.stdout.strip().partition(" ")
    return int(held), told


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has them")
def test_blocks_do_not_go_back() -> None:
    assert ran(kept=False)[0] < 40
    held, told = ran(kept=True)
    assert held >= 60 and told == "kept"


def test_limits_of_the_environment_stand() -> None:
    assert ran(kept=True, MALLOC_TRIM_THRESHOLD_="1000000")[1] == "as set in the environment"


@pytest.mark.parametrize(("system", "times"), [("linux", 1), ("darwin", 0)])
def test_a_system_without_glibc_is_named(
    system: str, times: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once per process, and only where one could have it."""
    monkeypatch.setattr(freed_memory.ctypes, "CDLL", lambda name: object())
    monkeypatch.setattr(sys, "platform", system)
    for name in freed_memory.CHOSEN:
        monkeypatch.delenv(name, raising=False)
    freed_memory.keep.cache_clear()
    try:
        assert {freed_memory.keep() for _ in range(2)} == {"given back: this system has no glibc"}
    finally:
        freed_memory.keep.cache_clear()
    assert capsys.readouterr().err.count("this Linux has no glibc") == times
