"""End this process, as a kill or a power cut would, at the N-th file operation inside a folder. For kill.py.

Operations: files opened for writing, renamed or deleted, folders made, files flushed to the disk, and checkpoints. The
process dies before the operation, or inside it: then the kernel ends it in the middle of what it writes.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

TEXT, TENSORS = 7, 4096  # bytes of a file that are written before the process ends inside an operation


class Point:
    """Counts the operations inside `root`; process ends at number `at` (0: never). Names are appended to `log`."""

    def __init__(self, root: Path, at: int, inside: bool, log: Path | None = None):
        self.root, self.at, self.inside, self.log = f"{os.path.abspath(root)}{os.sep}", at, inside, log
        self.count = 0

    def __call__(self, event: str, given: tuple[Any, ...]) -> None:
        """An audit hook."""
        if event == "open" and isinstance(given[0], str) and _writes(given[1], given[2]):
            kept = isinstance(given[1], str) and "a" in given[1] and os.path.exists(given[0])
            self.reached("open", given[0], TEXT + (os.path.getsize(given[0]) if kept else 0))
        elif event in ("os.rename", "os.remove", "os.mkdir") and isinstance(given[0], str | os.PathLike):
            self.reached(event.removeprefix("os."), os.fspath(given[0]))

    def reached(self, what: str, path: str, size: int | None = None) -> None:
        """One operation is about to begin; `size`: end inside it, when its file has this many bytes."""
        path = os.path.abspath(path)
        if not path.startswith(self.root):
            return
        self.count += 1
        if self.log:
            line = f"{what} {path.removeprefix(self.root)}{'' if size is None else ' +'}\n"
            with open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), "w") as file:
                file.write(line)
        if self.count != self.at:
            return
        if not self.inside or size is None:
            os.kill(os.getpid(), signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)  # Python ignores it, so that a write would only fail
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _writes(mode: str | None, flags: int) -> bool:
    """Whether a file is opened for writing."""
    return bool(set(mode or "") & set("wax+")) or bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def install(root: Path, at: int = 0, inside: bool = False, log: Path | None = None) -> None:
    """From now on this process counts, and ends."""
    import safetensors.torch

    point, save, flush = Point(root, at, inside, log), safetensors.torch.save_file, os.fsync

    def save_file(tensors: Any, path: Any, *more: Any) -> None:
        point.reached("save", os.fspath(path), TENSORS)
        save(tensors, path, *more)

    def fsync(file: int) -> None:
        point.reached("flush", os.readlink(f"/proc/self/fd/{file}"))
        flush(file)

    safetensors.torch.save_file = save_file
    if (known := sys.modules.get("flowward.system.checkpoint")) is not None:
        known.save_file = save_file  # type: ignore[attr-defined]
    os.fsync = fsync
    sys.addaudithook(point)
