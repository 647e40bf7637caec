"""Freed memory stays with the process: glibc's limits above which it goes back to the operating system, raised.

A training step frees and asks again for the same blocks of some megabytes. By its defaults glibc returns them each
time, and the system hands them out again filled with zeros, page by page: 2 % of an AdvantageFlow iteration on scenes,
and 15 % of an SRPO iteration (docs/benchmarks.md).
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

from .terminal import tell

MMAP, TRIM = -3, -1  # M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of malloc.h
BLOCK = 32 << 20  # bytes: glibc's most; larger blocks come from the system and go back to it
HELD = 1 << 30  # bytes of free memory at the end of the heap that are kept
CHOSEN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep() -> str:
    """Raise both limits, once per process; returns what stands: `kept`, or why the system's own limits stay.

    A Linux without glibc is told about; other systems have allocators of their own.
    """
    if any(os.environ.get(name) for name in CHOSEN):
        return "as set in the environment"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is None:
        if sys.platform == "linux":
            tell("this Linux has no glibc, so freed memory goes back to it in every step: training is a little slower")
        return "given back: this system has no glibc"
    kept = all(mallopt(ctypes.c_int(limit), ctypes.c_int(size)) for limit, size in ((MMAP, BLOCK), (TRIM, HELD)))
    return "kept" if kept else "given back: this system does not change the limits"
