"""Batches that are filled up to their usual size, where passes of one size are faster (Policy.repeats)."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from .policy import Policy


def filled(policy: Policy, rows: Tensor, size: int, unit: int = 1) -> tuple[Tensor, AbstractContextManager[None]]:
    """The rows of a batch, filled up to the usual size, and the context in which to evaluate them.

    What is computed for the rows that are added is thrown away; it changes nothing in the others. A batch of less than
    half the size stays as it is, since filling it would cost more than it saves.

    Args:
        rows: numbers of rows [n].
        size: of most batches, in rows.
        unit: rows that belong together; `size` and n are multiples of it.

    Returns:
        the numbers, with the last unit again and again up to `size`; and a context for the passes over them.
    """
    if not policy.repeats or 2 * len(rows) < size:
        return rows, nullcontext()
    again = rows[-unit:].repeat(max(0, size - len(rows)) // unit)
    return torch.cat([rows, again]), policy.repeated()
