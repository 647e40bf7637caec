"""Share work among workers that may fail temporarily.

No item is lost: after a failure, the item goes to another worker. The failed worker pauses before its next try, each
time twice as long (with jitter, so that many clients do not return at once).
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from .asking import ServiceError, Unavailable

FIRST, LONGEST = 0.5, 15.0  # seconds between tries
JITTER = random.Random()  # its own generator, so that the random numbers of a run do not change

Item = TypeVar("Item")
Result = TypeVar("Result")


def work(
    doers: Sequence[Callable[[Item], Result]],
    items: Sequence[Item],
    patience: float,
    name: Callable[[Item], str],
) -> list[Result]:
    """Process all items; each worker (`doers`) runs in a thread, one item at a time. Results keep the items' order.

    If a worker raises Unavailable it pauses, and its item goes to a free worker. Any other exception ends the work.

    Raises:
        ServiceError: no item succeeded for `patience` seconds after a failure; names an item and its last failure.
    """
    jobs: _Jobs[Item, Result] = _Jobs(items, patience, name)
    try:
        for doer in doers[: len(items)]:
            # Daemon threads, so that Ctrl-C does not wait for an unanswered request.
            threading.Thread(target=jobs.serve, args=(doer,), daemon=True).start()
        return jobs.finished()
    finally:
        jobs.stop()


def attempted(
    doer: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    patience: float,
    name: Callable[[Item], str],
) -> list[Result | ServiceError]:
    """As `work`, but what fails fails alone: an item gets the ServiceError in the place of its result.

    That is a permanent refusal of this item, or the end of patience for all items that have no result by then.
    """
    found: dict[int, Result | ServiceError] = {}

    def attempt(place: int) -> None:
        try:
            found[place] = doer(items[place])
        except ServiceError as error:
            found[place] = error

    places = range(len(items))
    try:
        work([attempt] * workers, places, patience, lambda place: name(items[place]))
    except ServiceError as error:
        over, done = error, dict(found)  # a worker may still be at it
        return [done.get(place, over) for place in places]
    return [found[place] for place in places]


class _Jobs(Generic[Item, Result]):
    """Items that wait, are in work, or are done."""

    def __init__(self, items: Sequence[Item], patience: float, name: Callable[[Item], str]):
        self.items, self.patience, self.name = items, patience, name
        self.waiting = deque(range(len(items)))
        self.results: dict[int, Result] = {}
        self.hopeful = 0  # items in work at workers whose last try did not fail
        self.failing_since: float | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self.changed = threading.Condition()

    @property
    def over(self) -> bool:
        return self.stopped or self.error is not None or len(self.results) == len(self.items)

    def finished(self) -> list[Result]:
        with self.changed:
            self.changed.wait_for(lambda: self.over)
        if self.error is not None:
            raise self.error
        return [self.results[index] for index in range(len(self.items))]

    def stop(self) -> None:
        with self.changed:
            self.stopped = True
            self.changed.notify_all()

    def serve(self, doer: Callable[[Item], Result]) -> None:
        """The loop of one worker."""
        failures = 0
        while (index := self._take(failures)) is not None:
            try:
                result = doer(self.items[index])
            except Unavailable as error:
                self._again(index, error, failures)
                failures += 1
            except BaseException as error:  # raised again by `finished`, in the thread of the caller
                with self.changed:
                    self.error = self.error or error
                    self.changed.notify_all()
            else:
                self._done(index, result, failures)
                failures = 0

    def _take(self, failures: int) -> int | None:
        with self.changed:
            self.changed.wait_for(lambda: self.over or self.waiting)
            if self.over:
                return None
            self.hopeful += not failures
            return self.waiting.popleft()

    def _done(self, index: int, result: Result, failures: int) -> None:
        with self.changed:
            self.results[index] = result
            self.hopeful -= not failures
            self.failing_since = None
            self.changed.notify_all()

    def _again(self, index: int, why: Unavailable, failures: int) -> None:
        """Put an item back and pause; give up if no worker has succeeded for too long."""
        with self.changed:
            self.waiting.append(index)
            self.hopeful -= not failures
            self.failing_since = self.failing_since or time.monotonic()
            left = self.failing_since + self.patience - time.monotonic()
            if not self.hopeful and (left <= 0 or why.pause > left):
                self.error = self.error or ServiceError(
                    f"{self.name(self.items[index])}: gave up after {self.patience:g} s "
                    f"(raise `patience` to wait longer); {why}"
                    + (f" (the server asks for a pause of {why.pause:.0f} s)" if why.pause > left > 0 else "")
                )
            self.changed.notify_all()
            pause = min(LONGEST, FIRST * 2 ** min(failures, 20)) * JITTER.uniform(0.5, 1)
            pause = min(pause, left) if left > 0 else pause  # so that the last try is at the end of patience
            self.changed.wait_for(lambda: self.over, timeout=max(pause, why.pause))
