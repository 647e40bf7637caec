"""Which LoRA adapters to train: their rank, scale, layers, and the LoRA that they start from. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Reference = Literal["init", "base"]

MOST_ALPHA = 1_000_000
MOST_ADAPTERS = 8  # of a palette
MOST_RANK = 4096  # layers have hardly more rows, so a larger rank is all of the layer and more


@dataclass(frozen=True)
class Adapters:
    """LoRA adapters: y = W x + (alpha / rank) B A x (Hu et al., 2021, arXiv:2106.09685).

    Args:
        rank: of every adapter. None: the rank of the LoRA to start from; its alpha and its layers are taken too.
        alpha: the adapters are scaled by alpha / rank. None: twice the rank.
        targets: names of the linear layers that get adapters: a whole name, or its end after a dot ("to_q",
            "ff.net.2"); "^proj_out" is a whole name only. None: the layers of the model family.
        start: a file or folder with a LoRA (or owner/name on the hub); training starts from it.
        reference: the model that KL terms pull towards: `init` as it is when training starts, or `base`, the model
            without adapters. None: `init` if there is a `start`; else both are the same.
        palette: names of objectives. Each gets an adapter of this rank, and v(x; theta + sum_k w_k B_k A_k) has its own
            weights w in every row.

    Raises:
        ValueError: there is neither a rank nor a start, or a value is impossible.
    """

    rank: int | None = None
    alpha: float | None = None
    targets: tuple[str, ...] | None = None
    start: str | None = None
    reference: Reference | None = None
    palette: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.start and (self.rank, self.alpha, self.targets) != (None, None, None):
            raise ValueError(f"rank, alpha and layers follow the LoRA that training starts from, {self.start}: "
                             "leave them out")  # fmt: skip
        if self.rank is None and not self.start:
            raise ValueError("LoRA adapters need a rank, or a LoRA to start from")
        if self.rank is not None and not 1 <= self.rank <= MOST_RANK:
            raise ValueError(f"the LoRA rank must be between 1 and {MOST_RANK}, not {self.rank}")
        if self.alpha is not None and not 0 < self.alpha <= MOST_ALPHA:
            raise ValueError(f"the LoRA alpha must be a positive number of at most {MOST_ALPHA:,}, not {self.alpha}")
        if self.palette:
            self._refuse_palette()
        if self.targets == ():
            raise ValueError("name at least one layer for LoRA adapters, or leave the choice to the model family")

    def _refuse_palette(self) -> None:
        """Raise ValueError if there cannot be an adapter for each of these objectives."""
        many = len(self.palette)
        if self.start:
            raise ValueError("a palette starts from new adapters: leave out --init-lora or --palette")
        if not 2 <= many <= MOST_ADAPTERS:
            raise ValueError(
                f"a palette has one adapter per reward of weight other than 0, 2 to {MOST_ADAPTERS} of them, not {many}"
            )
        if len(set(self.palette)) < many:
            raise ValueError(f"each adapter of a palette needs a name of its own, not {', '.join(self.palette)}")
        if self.rank is not None and self.rank * many > MOST_RANK:
            raise ValueError(
                f"{many} adapters of rank {self.rank} have rank {self.rank * many} together, and at most {MOST_RANK} "
                "is allowed: use a lower --lora-rank"
            )
