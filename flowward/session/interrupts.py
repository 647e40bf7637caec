"""Ctrl-C, or the stop button of a notebook, while a run goes on."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def deferred(say: Callable[[str], object]) -> Iterator[Callable[[], bool]]:
    """Inside, an interrupt only asks to stop: the yielded function says whether one came. A second one interrupts.

    Only the main thread can be asked; in any other one nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked: list[int] = []

    def ask(number: int, frame: object) -> None:
        asked.append(number)
        if len(asked) > 1:
            raise KeyboardInterrupt
        say("stopping after this iteration (interrupt once more to stop at once) ...")

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield lambda: bool(asked)
    finally:
        signal.signal(signal.SIGINT, before)
