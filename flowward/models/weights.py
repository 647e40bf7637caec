"""The weights that training needs, as whole copies of a network (here) or as LoRA adapters (lora.py).

`policy` is trained; named copies (`old`, `ema`) follow it; `reference` is the model when training started.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..system.distributed import part
from .mixture import Mixture


class Weights(ABC):
    """The trained weights (`policy`), their named copies, and `reference`."""

    kind: str  # for checkpoints: weights of one kind cannot be loaded as another
    own_reference = False  # `reference` is a copy that checkpoints store: not the model as it was loaded
    collective = False  # every pass through the network needs all processes, which hold parts of it

    half: torch.dtype | None = None  # the network computes in this dtype; None: it is float32, maybe under autocast

    stay = False  # inside `still`, weights lie where they lay before, which CUDA graphs need

    palette: tuple[str, ...] = ()  # the objectives of its adapters, which are mixed in every row (lora.py)
    mixture: Mixture | None = None  # of a palette: how

    def identity(self) -> dict[str, Any]:
        """What must be equal for checkpoints to fit."""
        return {"weights": self.kind}

    def meet(self, rows: Mapping[str, Tensor]) -> None:  # noqa: B027 (most weights are the same in all rows)
        """Prepare for a pass over rows with these tensors [N, ...] of a condition; call it in the pass's grad mode."""

    @abstractmethod
    def add(self, name: str) -> None:
        """Copy the current `policy` under this name (`reference`: call it before any training)."""

    def hold(self, name: str, values: dict[str, Tensor]) -> None:
        """Keep other weights of this model beside the policy, under this name. Nothing follows, stores or trains them.

        Raises:
            ValueError: the names or shapes do not match this model.
        """
        self.add(name)
        self.load(name, values)

    def networks(self) -> list[nn.Module]:
        """All networks that hold these weights."""
        return []

    @abstractmethod
    def network(self, name: str) -> AbstractContextManager[nn.Module]:
        """The network with the named weights active, until the context ends."""

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        """Until the context ends, only the named weights are used; they do not change and get no gradient."""
        yield

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Tensor]:
        """The live trainable tensors of `policy` or a copy; all have the same keys in the same order."""

    @torch.no_grad()
    def follow(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * policy."""
        source = self.tensors("policy")
        for key, tensor in self.tensors(name).items():
            mine = part(tensor)
            mine.lerp_(part(source[key]).to(mine.device), 1 - decay)

    def same(self, name: str) -> bool:
        """Whether a copy is bit-identical to the current policy."""
        mine = self.tensors("policy")
        return all(torch.equal(tensor, mine[key]) for key, tensor in self.tensors(name).items())

    @torch.no_grad()
    def load(self, name: str, values: dict[str, Tensor]) -> None:
        """Overwrite `policy` or a copy.

        Raises:
            ValueError: the names or shapes do not match this model.
        """
        mine = self.tensors(name)
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in values.items()}:
            raise ValueError(f"these weights belong to another model: {_difference(mine, values)}")
        for key, tensor in mine.items():
            tensor.copy_(values[key])


def _difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in theirs:
            return f"'{key}' is missing"
        if key not in mine:
            return f"'{key}' is not part of this model"
        if mine[key].shape != theirs[key].shape:
            return f"'{key}' has shape {list(theirs[key].shape)}, but this model needs {list(mine[key].shape)}"
    return "no difference found"


class Full(Weights):
    """Full fine-tuning: all weights are trained, and a copy is a second network.

    Copies named in `on_host` lie in the memory of the host, and come to the device while they are used.
    """

    kind = "full"
    again: Callable[[nn.Module], object] | None = None  # done to every copy: a deep copy of a compiled block is not

    def __init__(self, network: nn.Module, on_host: Collection[str] = ()):
        self._networks = {"policy": network.requires_grad_(True)}
        self.on_host = on_host
        self._here: str | None = None  # the copy of `on_host` that `still` has brought to the device

    def add(self, name: str) -> None:
        self._networks[name] = self.copied(name).requires_grad_(False)
        if self.again:
            self.again(self._networks[name])

    def networks(self) -> list[nn.Module]:
        return list(self._networks.values())

    def copied(self, name: str) -> nn.Module:
        """A second network with the values of the policy."""
        made = copy.deepcopy(self._networks["policy"])
        return made.to("cpu") if name in self.on_host else made

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        with self.network(name):
            before, self._here = self._here, name
            try:
                yield
            finally:
                self._here = before

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        network = self._networks[name]
        if name not in self.on_host or name == self._here:
            yield network
            return
        network.to(next(self._networks["policy"].parameters()).device)
        try:
            yield network
        finally:
            network.to("cpu")

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(self._networks[name].named_parameters())


@dataclass(frozen=True)
class Placement:
    """Where the weights of a network lie: whole in this process, or split among several (sharding.py)."""

    full: Callable[[nn.Module], Full] = Full  # the weights to train, if these are all
    collective: bool = False
    base: str | None = None  # the fingerprint of the network, if no process has all of it


WHOLE = Placement()
