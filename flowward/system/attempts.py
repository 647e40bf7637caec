"""The processes of one attempt find each other, also after torchrun has started them again (`--max-restarts`).

torchrun keeps one store from attempt to attempt. In it are the addresses of the processes of earlier attempts. A
process that comes early would read the address of one that is gone, so it could not connect (pytorch issue 135712).
Therefore each attempt has a name, and its processes exchange addresses under this name (`PrefixStore`).

How do they agree on the name? torchrun gives a process nothing that is new in each attempt and the same on all
machines. The run id, and address and port of the store, stay. TORCHELASTIC_RESTART_COUNT counts the failures that one
machine has seen: where only the neighbours of a failed machine are started again, theirs stays. Nor can the first
process just write the name into the store: a process that comes before it would read the name of the last attempt. So
each process asks, with a key that no other process has ever used:

1. Process r > 0 draws a random key and writes it under `asks/r`, over the one of its predecessor.
2. The first process draws a random name. It answers every key that it finds, with the name under `answers/KEY`. If the
   key belongs to a process that is gone, nobody reads this answer.
3. Process r reads the answer to its own key, and writes `here/NAME/r`.
4. The first process has met process r when `here/NAME/r` exists. It answers until it has met all.

An answer to a key is younger than the key, and `here/NAME/r` is younger than the name. So nobody takes what an earlier
attempt wrote for its own. This also holds if a process of the last attempt is still alive (on another machine, which
has not noticed yet): the new ones wait for its successor.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from .distributed import MOST_PATIENCE, Deserted

GRACE = 120.0  # seconds beyond `--patience`: a machine may notice so late that another one has failed
PAUSE = 0.1  # seconds between two looks at the store

_name = ""  # of this attempt; empty before the processes have met


def met(patience: float) -> dict[str, Any]:
    """Meet the other processes of this attempt. Returns arguments for `init_process_group`.

    Raises:
        Deserted: not all of them came within `patience` and GRACE seconds, or the store cannot be reached.
    """
    global _name
    wait = min(patience, MOST_PATIENCE)
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(seconds=wait + GRACE)))
        _name = _asked(store, rank, wait + GRACE) if rank else _handed_out(store, size, wait + GRACE)
    except Deserted:
        raise
    except RuntimeError as error:  # torch's own, such as DistNetworkError
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise Deserted(
            f"this process cannot reach {where}, where the processes of a run meet: torchrun has ended there, or a "
            "firewall is in the way"
        ) from error
    own = dist.PrefixStore(f"attempt/{_name}", store)  # type: ignore[attr-defined]
    own.set_timeout(timedelta(seconds=wait))
    return {"store": own, "rank": rank, "world_size": size}


def _asked(store: Any, rank: int, seconds: float) -> str:
    """Ask the first process for the name of this attempt, and report to it."""
    key = uuid.uuid4().hex
    store.set(f"asks/{rank}", key)
    for _ in _looks(seconds):
        if store.check([f"answers/{key}"]):
            name = str(store.get(f"answers/{key}").decode())
            store.set(f"here/{name}/{rank}", "")
            return name
    raise Deserted(_late("process 0", seconds))


def _handed_out(store: Any, size: int, seconds: float) -> str:
    """Name this attempt, and answer the others, of `size` in all, until each has reported."""
    name, answered, missing = uuid.uuid4().hex, set[bytes](), set(range(1, size))
    for _ in _looks(seconds):
        for rank in sorted(missing):
            if store.check([f"asks/{rank}"]) and (key := store.get(f"asks/{rank}")) not in answered:
                answered.add(key)
                store.set(f"answers/{key.decode()}", name)
        missing -= {rank for rank in missing if store.check([f"here/{name}/{rank}"])}
        if not missing:
            return name
    raise Deserted(_late(f"process {min(missing)}" if len(missing) == 1 else f"{len(missing)} processes", seconds))


def _looks(seconds: float) -> Iterator[None]:
    """One look at the store after the other, for so long. Between them Ctrl-C is heard."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        yield
        time.sleep(PAUSE)


def _late(who: str, seconds: float) -> str:
    return (
        f"{who} of this run did not come within {seconds:.0f} seconds (--patience and {GRACE:.0f} more): see the "
        "messages of the other machines"
    )


def is_news(sentence: str) -> bool:
    """Whether no process of this attempt has printed this sentence yet; works even if some have ended."""
    where, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    attempt = _name or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # before they have met: those of a machine
    try:
        store = dist.TCPStore(where, port, timeout=timedelta(seconds=2), wait_for_workers=False)  # type: ignore[attr-defined]
        return bool(store.add(f"said/{attempt}/{sentence}", 1) == 1)
    except RuntimeError:  # the store is gone: print it twice rather than never
        return True
