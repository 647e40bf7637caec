"""The weights with which the adapters of a palette are added up, in every row of a pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..process.policy import MIXTURE
from ..system.errors import unknown


class Mixture:
    """The mixture of K adapters: that of each row, or the default one where rows do not say.

    Gradient checkpointing computes layers again during the backward pass, when other passes may have come in between.
    So passes with gradients and passes without have a place each. The only pass with gradients between a forward pass
    and its backward pass is that one itself.
    """

    def __init__(self, many: int):
        self.default: tuple[float, ...] = (1 / many,) * many
        self._rows: dict[bool, Tensor | None] = {True: None, False: None}  # by whether the pass has gradients

    def named(self, names: Sequence[str]) -> dict[str, float]:
        """The default mixture by the names of the adapters."""
        return dict(zip(names, self.default, strict=True))

    def meet(self, rows: Mapping[str, Tensor]) -> None:
        """Remember the mixture [N, K] of a pass over these rows; call it in the grad mode of the pass."""
        self._rows[torch.is_grad_enabled()] = rows.get(MIXTURE)

    def of(self, rows: int, rank: int, device: torch.device | str = "cpu") -> Tensor:
        """The scale of each part of the rank axis in this grad mode, [rows, rank], or [1, rank] for all rows alike.

        Raises:
            ValueError: the layer has another number of rows than the pass.
        """
        found = self._rows[torch.is_grad_enabled()]
        if found is None:
            found = torch.tensor([self.default], device=device)
        if len(found) not in (1, rows):
            raise ValueError(
                f"a layer has {rows} rows, but {len(found)} samples have weights of their own: choose other layers for "
                "the palette with --lora-targets"
            )
        return found.repeat_interleave(rank // found.shape[1], 1)


def parsed(words: Sequence[str], names: Sequence[str]) -> tuple[float, ...]:
    """The mixture that `name=weight` words name; weights are divided by their sum, and those left out are 0.

    Raises:
        ValueError: a name is unknown or comes twice, a weight is no number from 0 on, or all are 0.
    """
    found = dict[str, float]()
    for word in words:
        name, equals, weight = word.rpartition("=")
        if not equals:
            raise ValueError(f"'{word}' is no part of a mixture; write it as name=weight, such as {names[0]}=0.7")
        if name not in names:
            raise ValueError(unknown("adapter", name, names))
        if name in found:
            raise ValueError(f"adapter '{name}' is named twice in the mixture; name it once")
        found[name] = _weight(name, weight)
    return normalised([found.get(name, 0.0) for name in names])


def normalised(weights: Sequence[float]) -> tuple[float, ...]:
    """Weights that sum to 1, as in training.

    Raises:
        ValueError: one is negative or infinite, or all are 0.
    """
    total = sum(weights)
    if not all(0 <= weight < float("inf") for weight in weights) or not 0 < total < float("inf"):
        raise ValueError(f"a mixture needs weights of 0 or more, and one above 0, not {' '.join(map(str, weights))}")
    return tuple(weight / total for weight in weights)


def _weight(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"the weight of adapter '{name}' must be a number, not '{text}'") from None


@contextmanager
def mixed(weights: Any, mixture: Sequence[float]) -> Iterator[None]:
    """Inside, rows of a palette that do not say otherwise have this mixture."""
    before, weights.mixture.default = weights.mixture.default, tuple(mixture)
    try:
        yield
    finally:
        weights.mixture.default = before
