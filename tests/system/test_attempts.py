"""How the processes of one attempt agree on its name, in a store that is full of what earlier attempts wrote."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch.distributed as dist

from flowward.system import attempts
from flowward.system.distributed import Deserted

LONG = 60.0  # seconds


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PAUSE", 0.002)


@pytest.fixture
def store() -> Any:
    return dist.HashStore()  # type: ignore[attr-defined]


def met(store: Any, size: int, order: Sequence[int]) -> list[str]:
    """The name that each process gets, if they come in this order."""

    def one(rank: int) -> str:
        time.sleep(0.02 * order.index(rank))
        return attempts._asked(store, rank, LONG) if rank else attempts._handed_out(store, size, LONG)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(one, range(size)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_every_attempt_has_one_name_of_its_own(store: Any, order: Sequence[int]) -> None:
    names = [met(store, 3, order) for _ in range(3)]
    assert all(len(set(each)) == 1 for each in names)
    assert len({each[0] for each in names}) == 3


def test_another_number_of_processes_may_follow(store: Any) -> None:
    assert len(set(met(store, 2, (1, 0)))) == len(set(met(store, 4, (3, 2, 1, 0)))) == 1


def test_alone_there_is_nobody_to_wait_for(store: Any) -> None:
    assert attempts._handed_out(store, 1, LONG)


@pytest.mark.parametrize("had_reported", [False, True])
def test_a_process_that_died_while_it_asked_is_not_taken_for_its_successor(store: Any, had_reported: bool) -> None:
    """The dead one got an answer, which does not help its successor: the first waits for that one."""
    store.set("asks/1", "of the dead")
    store.set("answers/of the dead", "an old name")
    if had_reported:
        store.set("here/an old name/1", "")
    assert len(set(met(store, 2, (0, 1)))) == 1
    assert store.get("answers/of the dead") != b"an old name"  # the new first one has answered it, too


def test_a_first_process_that_waits_meets_the_successor_of_one_that_died(store: Any) -> None:
    """Where machines are not started again together: only the second process is a new one."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(attempts._handed_out, store, 2, LONG)
        store.set("asks/1", "of the dead")
        store.wait(["answers/of the dead"])
        assert not first.done()
        assert attempts._asked(store, 1, LONG) == first.result()


def test_those_who_do_not_come_are_named(store: Any) -> None:
    with pytest.raises(
        Deserted, match=r"process 0 of this run did not come within 0 seconds \(--patience and 120 more"
    ):
        attempts._asked(store, 1, 0.05)
    with pytest.raises(Deserted, match="process 1 of this run did not come"):
        attempts._handed_out(store, 2, 0.05)
    with pytest.raises(Deserted, match="2 processes of this run did not come"):
        attempts._handed_out(store, 3, 0.05)


def test_a_store_that_is_gone_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "GRACE", 0.0)
    around = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in around.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Deserted, match=r"cannot reach 127\.0\.0\.1:1, where the processes of a run meet"):
        attempts.met(0.5)


def test_a_sentence_is_news_once_in_each_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those of an attempt that ended before its processes had met."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    for name, count in (("", "0"), ("", "1"), ("a", "1"), ("b", "1")):
        monkeypatch.setattr(attempts, "_name", name)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", count)
        assert [attempts.is_news("it failed"), attempts.is_news("it failed")] == [True, False]
