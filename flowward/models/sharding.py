"""Transformers whose weights are split among processes, by PyTorch's FSDP2 (`fully_shard`).

Each process holds a part of every tensor. A block is gathered when it is used, and let go after it. So a forward or
backward pass needs all processes, equally often (see `distributed.in_step`).
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import ContextParallelConfig
from diffusers.utils import logging
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

from ..system import distributed
from ..system.distributed import part
from .layout import Shard
from .text_encoders import FIRST, digest, files, where
from .weights import Full


def mesh_of(shard: Shard, device: str) -> DeviceMesh | None:
    """The processes among which weights are split, in the last of its dimensions; None if weights stay whole.

    Raises:
        ValueError: machines have different numbers of processes.
    """
    count = distributed.count()
    if shard == "none" or count == 1:
        return None
    kind, each = torch.device(device).type, int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if shard == "all" or each == count:
        return init_device_mesh(kind, (count,), mesh_dim_names=("part",))
    if count % each:
        raise ValueError(f"--shard node needs equally many processes on every machine, not {each} of {count} here")
    return init_device_mesh(kind, (count // each, each), mesh_dim_names=("machine", "part"))


def blocks(transformer: nn.Module) -> Iterator[nn.Module]:
    """The repeated blocks of a transformer: what is compiled, and gathered, at once."""
    for stack in transformer.children():
        yield from stack if isinstance(stack, nn.ModuleList) else ()


def split(transformer: nn.Module, mesh: DeviceMesh, on_host: bool = False) -> None:
    """Split the parameters of a transformer, block by block; what is added to it later stays whole (adapters).

    Gradients are added up over all processes, as unsharded ones are (FSDP would take their mean).

    Args:
        on_host: the parts lie in the memory of the host, and come to the device when they are gathered.
    """
    # of blocks that return parts of one tensor, as FLUX's do: no model here changes what a block returned in place
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    pinned = mesh.device_type == "cuda"
    where = CPUOffloadPolicy(pin_memory=pinned) if on_host else OffloadPolicy()
    # the root too lets go after a pass: gathered weights would not notice that a copy has followed the policy
    for module in [*blocks(transformer), transformer]:
        made: Any = fully_shard(module, mesh=mesh, reshard_after_forward=True, offload_policy=where)
        made.set_gradient_divide_factor(1.0)
        made.set_force_sum_reduction_for_comms(True)


def share_sequence(transformer: Any, processes: int, device: str) -> None:
    """Let each team of consecutive processes share the sequence of every sample (Ulysses, arXiv:2309.14509).

    Each member computes a part of the output and gets all of it. Its gradient is that of its part, so gradients are
    added up over all processes, as they are without teams.

    Raises:
        ValueError: its attention does not support it.
    """
    teams = (distributed.count() // processes, 1, processes)
    mesh = init_device_mesh(torch.device(device).type, teams, mesh_dim_names=("team", "ring", "ulysses"))
    how = ContextParallelConfig(ulysses_degree=processes, mesh=mesh["ring", "ulysses"])
    said = logging.get_verbosity()
    logging.set_verbosity_error()  # it warns that it is experimental
    try:
        transformer.enable_parallelism(config=how)
    except ValueError as error:
        raise ValueError(f"--context-parallel: {_short(error)}") from error
    finally:
        logging.set_verbosity(said)


@dataclass(frozen=True)
class Stored:
    """A transformer in a folder, of which each process reads its part only.

    Args:
        kind: its class.
        folder: with its configuration and weights.
        variant: of the weights, such as fp16.
        dtype: of its parameters.
    """

    kind: Any
    folder: Path
    variant: str | None
    dtype: torch.dtype
    mesh: DeviceMesh
    device: str

    def empty(self, on_host: bool = False) -> nn.Module:
        """The transformer, split, with undefined values."""
        with init_empty_weights(include_buffers=False):
            made: Any = self.kind.from_config(self.kind.load_config(self.folder))
        kept = set(self.kind._keep_in_fp32_modules or ())
        for name, held in made.named_parameters():
            wanted = torch.float32 if kept & set(name.split(".")) else self.dtype
            held.data = held.data.to(wanted)
        buffers = dict(made.named_buffers())
        split(made, self.mesh, on_host)
        made.to_empty(device="cpu" if on_host else self.device)
        for name, buffer in buffers.items():  # they have values, which `to_empty` has taken
            place, _, own = name.rpartition(".")
            setattr(made.get_submodule(place), own, buffer.to(self.device))
        return made.requires_grad_(False).eval()

    def read(self) -> nn.Module:
        """The transformer, split, with the values in the files.

        Raises:
            ValueError: the files do not fit its configuration, or are damaged.
        """
        made = self.empty()
        with (
            tempfile.TemporaryDirectory() as place,
            warnings.catch_warnings(),
        ):  # the reader takes every file of a folder, of all variants
            for file in files(self.folder, self.variant):
                Path(place, file.name).symlink_to(file.resolve())
            try:
                warnings.simplefilter("ignore", UserWarning)  # that no process group is used
                load(made.state_dict(), storage_reader=HuggingFaceStorageReader(place), no_dist=True)
            except Exception as error:  # torch raises one kind for all, with a traceback in its text
                raise ValueError(f"the weights in {self.folder} cannot be read: {_short(error)}") from error
        return made

    def first_values(self) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
        """Name, shape and first values of each tensor in the files, in the order of the network."""
        with init_empty_weights():
            names = self.kind.from_config(self.kind.load_config(self.folder)).state_dict()
        places = where(self.folder, self.variant)
        for name in [name for name in names if name in places]:
            with safe_open(places[name], "pt") as opened:
                stored = opened.get_slice(name)
                shape = tuple(stored.get_shape())
                yield name, shape, stored[_leading(shape)] if shape else opened.get_tensor(name)


def _leading(shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The smallest box at the origin that has the first FIRST values of a tensor."""
    found, needed = list[slice](), FIRST
    for size in reversed(shape):
        found.append(slice(min(size, needed)))
        needed = -(-needed // max(1, size))
    return tuple(reversed(found))


def fingerprint(stored: Mapping[str, Stored]) -> str:
    """The digest of the transformers in these files: that of the network that is loaded from them."""
    several = len(stored) > 1
    return digest(
        (f"{part}.{name}" if several else name, shape, first)
        for part, each in stored.items()
        for name, shape, first in each.first_values()
    )


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[-200:]


class Split(Full):
    """Full fine-tuning of a split network. A copy is a second network, split alike, and filled part by part.

    Args:
        network: the policy.
        another: makes such a network without values, in the memory of the host or on the device.
        on_host: copies that lie in the memory of the host; a block comes to the device when it is gathered.
    """

    collective = True

    def __init__(self, network: nn.Module, another: Callable[[bool], nn.Module], on_host: Collection[str] = ()):
        super().__init__(network, on_host)
        self._another = another

    @torch.no_grad()
    def copied(self, name: str) -> nn.Module:
        made, mine = self._another(name in self.on_host), self._networks["policy"].state_dict()
        for key, tensor in made.state_dict().items():
            part(tensor).copy_(part(mine[key]))
        return made

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        yield

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        yield self._networks[name]
