"""The passes of a loss over training points: microbatches, with the anchors that they need.

Where processes hold parts of one network (`Weights.collective`), each pass needs all of them. So all make equally many:
a process with fewer points passes a blank row, whose gradient is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..learning.points import PointSet
from ..learning.rows import Rows
from ..process.policy import Condition, anchor_of
from ..system import distributed

if TYPE_CHECKING:
    from .loop import Loop


@dataclass(frozen=True)
class Blank:
    """A row to evaluate a network at, where only the pass itself matters."""

    x_t: Tensor  # [1, ...]
    t: Tensor  # [1]
    condition: Condition  # one row
    known: Mapping[str, Tensor] = field(default_factory=dict)

    def place(self, name: str) -> tuple[Tensor, Tensor, Condition]:
        return self.x_t, self.t, self.condition


Loss = Callable[[], tuple[Tensor, dict[str, Tensor]]]
"""-> the losses [B] of a microbatch, and its metrics"""


def losses(
    loop: Loop[Any], points: PointSet, numbers: Tensor, fresh: bool = False, same: Sequence[str] = ()
) -> Iterator[Loss]:
    """The losses of the points with these numbers, a microbatch at a time; each must be called once, in this order.

    For `fresh` and `same` see `batches`.
    """
    loss = loop.adaptive.loss(loop.adapted)
    for part in loop.batches(points, numbers, fresh, same):
        if part is None:
            yield lambda: (0 * loop.models.at("policy", loop.blank()).flatten(1).sum(1), {})
        else:
            yield lambda part=part: loss(loop.models, part)  # type: ignore[misc]


def batches(
    loop: Loop[Any], points: PointSet, numbers: Tensor, fresh: bool = False, same: Sequence[str] = ()
) -> Iterator[Any]:
    """Microbatches of the points with these numbers. Anchors, which need no gradient, use larger batches.

    The `same` anchors reuse the output of the policy, so they need no forward pass. None stands for a pass that only
    other processes need.
    """
    collective = loop.model.weights.collective
    others = [name for name in loop.algorithm.anchors if name not in same]
    block = max(1, loop.block // loop.microbatch) * loop.microbatch
    parts, size = list(numbers.split(block)) if len(numbers) else [], min(block, len(numbers))
    for part, _ in distributed.in_step(parts, numbers[:0], collective):
        batch = _taken(loop, points, part, fresh) if len(part) else None
        if not (distributed.any_of(batch is not None) if collective else batch is not None):
            continue
        with torch.no_grad():
            if batch is None:
                for name in others:
                    with loop.still(anchor_of(name)[0]):
                        loop.models.at(name, loop.blank())
            else:
                batch = batch.knowing({name: _anchor(loop, name, batch, size) for name in others})
        micro = list(batch.split(loop.microbatch)) if batch is not None else []
        for each, real in distributed.in_step(micro, None, collective):
            yield _with_policy(loop, each, same) if real and same else each


def _taken(loop: Loop[Any], points: PointSet, numbers: Tensor, fresh: bool) -> Any:
    """These points, without those that teach nothing; None if no one is left."""
    batch: Any = replace(points.take(numbers), fresh=fresh)
    if loop.algorithm.skips_silent:
        batch = batch[(batch.advantage != 0).view(len(batch), -1).any(1)]
    return batch if len(batch) else None


def _with_policy(loop: Loop[Any], part: Any, same: Sequence[str]) -> Rows:
    """The part with the output of the policy, which is that of the `same` anchors too."""
    v = loop.models.at("policy", part)
    known: Rows = part.knowing({"policy": v, **dict.fromkeys(same, v.detach())})
    return known


def _anchor(loop: Loop[Any], name: str, batch: Any, size: int) -> Tensor:
    """Its velocities [B, ...] at the points of a batch; most batches have `size` points."""
    many = len(batch)
    with loop.still(anchor_of(name)[0]):
        rows, repeated = loop.filled(name, torch.arange(many), size)
        with repeated:
            found: Tensor = loop.models.at(name, batch[rows] if len(rows) > many else batch)
    return found[:many]
