"""How long processes of a run wait for each other."""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any

import torch
from processes import together

from flowward.system import distributed, launching

PROCESSES = 2


def late(number: int, where: str, port: int) -> None:
    """The last process is late, first where others are patient, then where they are not."""
    around = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": PROCESSES, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in around.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "x"}
    said = list[Any]()
    with launching.joined(patience=1.0):
        with distributed.patiently():
            time.sleep(2.0 * number)
            said.append(distributed.told(number))
        said.append(distributed.told(number))  # all are there
        time.sleep(3.0 * number)
        try:
            distributed.add_up([torch.ones(1)])
        except distributed.Deserted as error:
            said.append(str(error))
    (Path(where) / f"{number}.json").write_text(json.dumps(said))


def test_a_process_waits_longer_only_where_it_is_told_to(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    together(late, (str(tmp_path), port), PROCESSES)
    for number in range(PROCESSES):
        first, second, ended = json.loads((tmp_path / f"{number}.json").read_text())
        assert first == second == [0, 1]
        assert ended.startswith("another process of this run has ended, or did not answer in time (--patience)")
