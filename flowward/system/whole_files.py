"""Files that appear whole or not at all: written beside their place, brought to the disk, then renamed. No torch.

After a crash, a power cut or on a full disk, the previous file is still there.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PARTS = ".parts"  # end of the name of a folder that is one checkpoint
LEFTOVERS = (".*.partial", ".tmp??????")  # of a killed process: of this module, and of safetensors
_MASK = threading.Lock()


@contextmanager
def replacing(path: Path, shared: bool = False, durable: bool = False) -> Iterator[Path]:
    """Inside, write to the path that this gives; at the end that file takes the place of `path`, in an existing folder.

    Args:
        shared: other threads or processes may write the same file now, so each writes to a name of its own.
        durable: at the end the name is on the disk too, and not only the content.

    Raises:
        OSError: it cannot be written, or `path` is no regular file; an older file there is unchanged.
    """
    if path.exists() and not path.is_file():  # such as /dev/null, which root could replace by a file
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    own = f".{os.getpid()}.{threading.get_ident()}" if shared else ""
    partial = path.with_name(f".{path.name}{own}.partial")
    try:
        yield partial
        flush(partial)
        os.replace(partial, path)
        if durable:
            flush(path.parent)
    finally:
        discard(partial)


def write(path: Path, content: str | bytes, shared: bool = False) -> None:
    """Write a whole file; text is UTF-8. Arguments and errors are those of `replacing`."""
    with replacing(path, shared) as partial:
        if isinstance(content, str):
            partial.write_text(content, "utf-8")
        else:
            partial.write_bytes(content)


@contextmanager
def new_folder(path: Path, replace: bool = False) -> Iterator[Path]:
    """Inside, write into the folder that this gives; at the end it is `path`, with all files on the disk.

    Args:
        replace: delete an older folder there at the end.

    Raises:
        OSError: it cannot be written, or something is at `path` that may not be replaced.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = begin_folder(path)
    try:
        yield partial
        end_folder(path, replace)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def partial_of(path: Path) -> Path:
    """Where a folder is written before it is whole."""
    return path.with_name(f".{path.name}.partial")


def begin_folder(path: Path) -> Path:
    """An empty folder, for what shall be at `path`; `end_folder` gives it the name.

    Raises:
        OSError: it cannot be made.
    """
    partial = partial_of(path)
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir()
    return partial


def end_folder(path: Path, replace: bool = False, durable: bool = False) -> None:
    """The folder that `begin_folder` made becomes `path`. Arguments and errors are those of `new_folder`.

    Args:
        durable: at the end the name is on the disk too, and not only the content.
    """
    partial = partial_of(path)
    permit(*partial.glob("*.safetensors"))
    for file in partial.iterdir():
        flush(file)
    if durable:
        flush(partial)
    if path.exists():
        shutil.rmtree(path) if replace else path.rmdir()  # which raises if it is not empty
    os.replace(partial, path)
    if durable:
        flush(path.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk and survive a power cut.

    Raises:
        OSError: they cannot be written.
    """
    if not path.is_dir():
        with open(path, "rb+") as file:  # Windows syncs only files opened for writing
            os.fsync(file.fileno())
    elif os.name == "posix":  # Windows opens no folders
        folder = os.open(path, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def discard(path: Path) -> None:
    """Delete a file that is not whole, if it is there.

    It only takes space, so it is no error if it cannot be deleted: a read-only disk refuses even what is not there.
    """
    with suppress(OSError):
        path.unlink()


def remove(path: Path) -> None:
    """Delete a file or a folder. A folder is renamed first, so that nobody finds half of it under its name.

    Raises:
        OSError: it cannot be deleted.
    """
    if not path.is_dir():
        path.unlink()
        return
    partial = partial_of(path)
    os.replace(path, partial)
    shutil.rmtree(partial)


def clear(folder: Path) -> None:
    """Delete what a killed process left half written in a folder: it can be as large as a checkpoint.

    Only for a folder that no other process writes to.
    """
    for pattern in LEFTOVERS:
        for path in folder.glob(pattern):
            discard(path)
    for path in folder.glob(f".*{PARTS}.partial"):  # no other folders: an export may be written at the same time
        shutil.rmtree(path, ignore_errors=True)


def permit(*files: Path) -> None:
    """Give safetensors files the permissions of the umask: safetensors makes them readable for their owner only."""
    with _MASK:  # two threads at once would leave the process with a mask of 0
        mask = os.umask(0)  # the only way to read it is to set it
        os.umask(mask)
    for file in files:
        os.chmod(file, 0o666 & ~mask)


def reason(error: Exception) -> str:
    """Why a file could not be written, in the words of the system; safetensors wraps them."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    found = re.search(r"I/O error: (.+) \(os error \d+\)", str(error))
    return found[1] if found else str(error)
