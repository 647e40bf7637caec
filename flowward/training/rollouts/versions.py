"""Versions of the weights: those that drew, or will draw, samples that are still to be trained on.

Version n are the weights after n iterations. With staleness k the images of iteration i are drawn by version
max(0, i - k). So at the start of iteration i, versions i - k to i are kept; a checkpoint holds those before its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ...process.policy import Weights

ANCHOR = "old"  # what losses are anchored to

Copy = dict[str, Tensor]


class Versions:
    """Copies of some of the weights, by version.

    Args:
        names: which weights: those that draw, and `old` where samples are trained on with the `old` of their version.
        stale: k.
    """

    def __init__(self, weights: Weights, names: Sequence[str], stale: int):
        self.weights, self.names, self.stale = weights, tuple(dict.fromkeys(names)), stale
        self._kept: dict[int, dict[str, Copy]] = {}

    def keep(self, number: int) -> None:
        """Copy the weights of now as this version, if it is not known, and drop those that are not needed any more."""
        self._kept = {old: kept for old, kept in self._kept.items() if number - self.stale <= old <= number}
        if number not in self._kept:
            self._kept[number] = {name: _copied(self.weights.tensors(name)) for name in self.names}

    def of(self, iteration: int) -> int:
        """The version whose samples are trained on in an iteration, from the last one that was kept on.

        A run that was started with a smaller k has no earlier ones than those in its checkpoint.
        """
        return max(iteration - self.stale, min(self._kept))

    def at(self, number: int, name: str) -> Copy:
        """Weights of a version; they must not be changed."""
        return self._kept[number][name]

    @contextmanager
    def anchored(self, iteration: int) -> Iterator[None]:
        """Inside, `old` is that of the version which drew the samples of this iteration, the last one kept."""
        number = self.of(iteration)
        if ANCHOR not in self.names or number == iteration:
            yield
            return
        try:
            self.weights.load(ANCHOR, self.at(number, ANCHOR))
            yield
        finally:
            self.weights.load(ANCHOR, self.at(iteration, ANCHOR))

    def clear(self) -> None:
        """Forget all."""
        self._kept = {}

    def state_dict(self, iteration: int) -> dict[int, dict[str, Copy]]:
        """The versions before this one that are still to be used."""
        return {
            number: dict(kept) for number, kept in self._kept.items() if iteration - self.stale <= number < iteration
        }

    def load_state_dict(self, state: Mapping[int, Mapping[str, Any]]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: it lacks some of the weights, or has those of another model.
        """
        found = {
            int(number): {name: dict(kept[name]) for name in self.names if name in kept}
            for number, kept in state.items()
        }
        for kept in found.values():
            for name in self.names:
                if name not in kept or _shapes(kept[name]) != _shapes(self.weights.tensors(name)):
                    raise ValueError(
                        f"the earlier weights '{name}' of this checkpoint do not fit: use the settings of that run"
                    )
        self._kept = found


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    return {key: tensor.shape for key, tensor in tensors.items()}


@torch.no_grad()
def _copied(tensors: Mapping[str, Tensor]) -> Copy:
    """On the CPU; of weights that are split among processes, this one's part, where it is."""
    return {
        key: tensor.detach().clone() if _is_split(tensor) else tensor.detach().to("cpu", copy=True)
        for key, tensor in tensors.items()
    }


def whole(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> Copy:
    """Whole weights on the CPU, one after the other; where they are split, all processes must call it.

    They ask for gradients where those of `like` do.
    """
    found: Copy = {}
    for key, tensor in tensors.items():
        part: Any = tensor
        full = part.full_tensor().cpu() if _is_split(tensor) else part
        found[key] = full.detach().requires_grad_(like[key].requires_grad)
    return found


def _is_split(tensor: Tensor) -> bool:
    return hasattr(tensor, "full_tensor")  # torch's DTensor
