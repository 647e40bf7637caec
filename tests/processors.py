"""Which processor the tests stand for.

`auto` precision depends on the processor. Only tests with the mark `processor` may leave it to the machine: `.ci/run`
runs them once as on a processor with bf16 and once as on one without (FLOWWARD_CPU_PRECISION=bf16, float32). In every
other test, in the processes that it starts, and in what tests share, asking the processor is an error (conftest.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "FLOWWARD_CPU_PRECISION"  # precision.VARIABLE, which is not imported: tests without torch do not wait for it
UNASKED = "what this processor prefers (name a precision, or give the test the mark `processor`)"
MACHINE = os.environ.get(VARIABLE) or None  # the switch: bf16 or float32; None: this processor


@contextmanager
def answering(answer: str | None) -> Iterator[None]:
    """Inside, this is what the processor says it prefers; None: the truth."""
    before = os.environ.pop(VARIABLE, None)
    if answer is not None:
        os.environ[VARIABLE] = answer
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before
