"""One process at a time writes to a folder. Why the two systems differ: docs/notes/libraries.md. No torch."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

LOCK = ".lock"  # in the folder, on Windows alone


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Inside, no other process gets the lock of a folder. The lock ends with the process, however that ends.

    Where a file system has no locks, or is read-only on Windows, there is none.

    Raises:
        BlockingIOError: another process has it.
        OSError: the folder cannot be opened.
    """
    release = _taken(folder)
    try:
        yield
    finally:
        release()


def _taken(folder: Path) -> Callable[[], None]:
    """Take the lock; returns what gives it back."""
    try:
        import fcntl
    except ImportError:  # Windows, where a folder cannot be opened
        return _taken_file(folder / LOCK)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        raise
    except OSError:  # some file systems have no locks
        pass
    return partial(os.close, opened)


def _taken_file(path: Path) -> Callable[[], None]:
    import filelock

    lock = filelock.FileLock(path, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK), str(path)) from None
    except OSError:
        return lambda: None
    return lock.release
