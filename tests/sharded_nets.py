"""A tiny network whose weights are sharded among processes (FSDP2), some of them in uneven or empty parts."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard

LAYOUTS: dict[str, tuple[int, ...]] = {"pair": (2,), "four": (4,), "hybrid": (2, 2)}  # of processes; 2 x 2 is HSDP


@cache
def mesh(name: str) -> DeviceMesh:
    shape = LAYOUTS[name]
    return init_device_mesh("cpu", shape, mesh_dim_names=("machine", "card")[-len(shape) :])


class Net(nn.Sequential):
    """The last layer is in bf16."""

    def forward(self, rows: Tensor) -> Tensor:
        found: Tensor = self[2](self[1](self[0](rows)).to(torch.bfloat16))
        return found.float()


def network(layout: str | None = None, seed: int = 0) -> Net:
    """7 rows for 2 or 4 processes, and 1 row, of which most have nothing."""
    torch.manual_seed(seed)
    net = Net(nn.Linear(3, 7), nn.Linear(7, 1), nn.Linear(1, 2, dtype=torch.bfloat16))
    if layout:
        there = mesh(layout)
        for block in (net[2], net):
            part: Any = fully_shard(block, mesh=there)
            part.set_force_sum_reduction_for_comms(True)
            part.set_gradient_divide_factor(1)
    return net


def step(net: nn.Module, optimiser: torch.optim.Optimizer) -> None:
    """An optimiser step on the sum over processes of a loss that is the same for any number of them."""
    count = dist.get_world_size() if dist.is_initialized() else 1
    ((net(torch.ones(4, 3)) ** 2).sum() / count).backward()
    optimiser.step()
    optimiser.zero_grad()


def full(value: Any) -> Any:
    """Nested state with whole tensors in the place of sharded ones; every process has to call it."""
    if isinstance(value, Tensor):
        return value.full_tensor() if hasattr(value, "full_tensor") else value
    if isinstance(value, dict):
        return {key: full(each) for key, each in value.items()}
    return type(value)(full(each) for each in value) if isinstance(value, list | tuple) else value


def same(one: Any, other: Any) -> bool:
    """Whether nested states are equal to the bit, with the same types of numbers."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def joined(where: str, number: int, count: int) -> None:
    """This process becomes one of `count`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{where}/meet{count}", rank=number, world_size=count)


def damage(file: Path, place: float = 0.7) -> None:
    """Change one bit."""
    data = bytearray(file.read_bytes())
    data[int(place * len(data))] ^= 1
    file.write_bytes(data)
