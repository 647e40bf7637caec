"""Sharding a model of fake tensors: one process of many that do not exist, to count what it holds.

The sharding is torch's own (FSDP2). The other processes are torch's fake process group, which sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule
from torch.testing._internal.distributed.fake_pg import FakeStore

from .sharding import split
from .weights import Full

FAKE = FakeTensorMode(allow_non_fake_inputs=True)  # of all weights without values
MOST = 1024  # processes; torch cuts every tensor into so many parts


class Alike(Full):
    """All weights of a sharded network of fake tensors; a copy is another network, sharded alike.

    Args:
        network: sharded.
        another: makes such a network.
        host: names of copies that lie in the memory of the host.
    """

    def __init__(self, network: nn.Module, another: Callable[[], nn.Module], host: Sequence[str] = ()):
        super().__init__(network)
        self._another, self._host = another, host

    def add(self, name: str) -> None:
        self._networks[name] = self._another().requires_grad_(False)

    def offloaded(self) -> list[Tensor]:
        """The tensors of the copies in the memory of the host."""
        return [held for name in self._host if name in self._networks for held in self.tensors(name).values()]


def sharded(
    network: nn.Module, parts: Mapping[str, nn.Module], processes: int, filled: Callable[[nn.Module], None]
) -> Callable[[], nn.Module]:
    """Shard the transformers of a network among so many processes. Returns what makes another one.

    Args:
        parts: the transformers in the network, or the network itself.
        filled: replaces parameters on the meta device by fake ones.
    """
    places = [place for place, module in network.named_modules() if any(module is part for part in parts.values())]
    on_meta = {id(held): _on_meta(held) for held in network.parameters()}
    bare = deepcopy(network, on_meta)
    _split(network, places, processes)

    def another() -> nn.Module:
        made = deepcopy(bare)
        filled(made)
        _split(made, places, processes)
        return made

    return another


def _on_meta(held: Any) -> nn.Parameter:
    return nn.Parameter(torch.empty(held.shape, dtype=held.dtype, device="meta"), requires_grad=False)


def _split(network: nn.Module, places: list[str], processes: int) -> None:
    with _others(processes) as mesh:
        for place in places:
            split(network.get_submodule(place), mesh)
            _without_values(network.get_submodule(place))


def _without_values(transformer: nn.Module) -> None:
    """Let gathered weights and gradients be fake tensors too: real ones would take memory, and hours."""
    for module in transformer.modules():
        if isinstance(module, FSDPModule):
            for group in module._get_fsdp_state()._fsdp_param_groups:
                for name in ("unshard", "wait_for_unshard", "post_backward"):
                    setattr(group, name, _faked(getattr(group, name)))


def _faked(method: Callable[..., Any]) -> Callable[..., Any]:
    def called(*given: Any, **named: Any) -> Any:
        with FAKE:
            return method(*given, **named)

    return called


@contextmanager
def _others(processes: int) -> Iterator[DeviceMesh]:
    """Inside, there seem to be other processes; afterwards networks keep them, and the rest of a run sees none."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield init_device_mesh("cpu", (processes,))
    finally:
        dist.destroy_process_group()
