"""Whether all machines of a run see one folder."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from . import distributed

SIGHT = 30.0  # seconds until a file of one machine can be seen on another: NFS looks again after as many


def refuse_apart(folder: Path, contents: Callable[[], object] = lambda: None) -> None:
    """Refuse to start where a machine does not see the folder that the first process will write.

    The folder may not exist yet: then the nearest one above it is tried. The first process makes a file with a random
    name there, and deletes it. All processes have to call this together.

    Args:
        contents: what has to be equal in all processes, such as the name of the newest checkpoint.

    Raises:
        ValueError: a machine does not see that file, or other contents, after SIGHT seconds; in every process.
    """
    if distributed.machines() == 1:
        return
    chain, name = (folder.absolute(), *folder.absolute().parents), f".{uuid.uuid4().hex}.partial"
    above = next(number for number, each in enumerate(chain) if each.is_dir())
    if distributed.rank() == 0:
        (chain[above] / name).touch()
    try:
        first = distributed.told((above, name, contents(), socket.gethostname()))[0]
        above, name, there, host = first
        seen = _soon(lambda: (chain[above] / name).exists() and contents() == there)
        blind = [each for each, sees in distributed.told((socket.gethostname(), seen)) if not sees]
    finally:
        if distributed.rank() == 0:
            (chain[above] / name).unlink(missing_ok=True)
    if blind:
        raise ValueError(
            f"{blind[0]} does not see what {host} sees in {folder}: a run on several machines needs a folder that all "
            "of them share; name one with --output"
        )


def _soon(condition: Callable[[], bool]) -> bool:
    """Whether it becomes true within SIGHT seconds."""
    end = time.monotonic() + SIGHT
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return found
