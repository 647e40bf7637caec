"""State on disk: nested dicts, lists, numbers and tensors in one safetensors file, written whole or not at all.

Nothing is pickled, so a checkpoint from a stranger cannot run code. A hash of the content is stored with it, so that a
file that the disk or a copy has changed is not taken for a good one. State with sharded tensors becomes a folder of
such files (checkpoint_parts.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import checkpoint_parts, distributed
from .checkpoint_parts import agreed, sliced
from .distributed import is_split, part
from .packing import packed, unpacked
from .whole_files import PARTS, permit, reason, replacing

_TREE, _HASH = "flowward", "sha256"  # keys of the metadata
THREADS = 4  # that hash tensors at once; hashing is as fast as a disk, so a large checkpoint should not wait for one


class Writing(Protocol):
    """A checkpoint that is being written."""

    def done(self) -> bool: ...  # whether `finish` need not wait for this process
    def finish(self) -> None: ...  # wait until it is a checkpoint; raises OSError


def suffix(state: Mapping[str, Any]) -> str:
    """The end of the name of a checkpoint with this state: `.parts` for a folder, if it has sharded tensors."""
    return PARTS if _sharded(packed(state)[1]) else ".safetensors"


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (dicts, lists, tuples, None, str, int, float, bool and tensors) to `path`, in an existing folder.

    With sharded tensors in it, `path` becomes a folder, and all processes have to call this together.

    Raises:
        OSError: it could not be written (disk full, no permission); an older file at `path` is untouched. With sharded
            tensors in every process.
    """
    tree, tensors = packed(state)
    if _sharded(tensors):
        _parts(path, tree, tensors, None).finish()
    else:
        _write(path, tree, _copied(tensors))


def begin(path: Path, state: dict[str, Any], aside: dist.ProcessGroup | None = None) -> Writing:
    """The same in a thread: it is a checkpoint once `finish` has returned. `state` is copied to the CPU first.

    Args:
        aside: for sharded tensors: a process group on the CPU that nothing else uses.
    """
    tree, tensors = packed(state)
    if _sharded(tensors):
        return _parts(path, tree, tensors, aside)
    return _File(path, tree, _copied(tensors))


def _sharded(tensors: Mapping[str, Tensor]) -> bool:
    return any(map(is_split, tensors.values()))


class _File:
    """One file that a thread writes."""

    def __init__(self, path: Path, tree: str, tensors: dict[str, Tensor]):
        threads = ThreadPoolExecutor(1, "checkpoint")
        self._work: Future[None] = threads.submit(_write, path, tree, tensors)
        threads.shutdown(wait=False)

    def done(self) -> bool:
        return self._work.done()

    def finish(self) -> None:
        self._work.result()


def _parts(
    path: Path, tree: str, tensors: Mapping[str, Tensor], aside: dist.ProcessGroup | None
) -> checkpoint_parts.Writing:
    """Sharded tensors in parts; all else in one file, which the first process writes."""
    shards = {name: tensor for name, tensor in tensors.items() if is_split(tensor)}
    first = distributed.rank() == 0
    rest = _copied({name: tensor for name, tensor in tensors.items() if name not in shards}) if first else {}
    return checkpoint_parts.Writing(path, shards, lambda file: _write(file, tree, rest), aside)


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: part(tensor).to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _write(path: Path, tree: str, tensors: dict[str, Tensor]) -> None:
    tensors = tensors or {"_": torch.zeros(1)}
    try:
        with replacing(path, durable=True) as partial:
            save_file(tensors, partial, {_TREE: tree, _HASH: _hash(tree, tensors)})
            permit(partial)
    except (SafetensorError, OSError) as error:  # safetensors reports a full disk as its own kind of error
        raise OSError(f"cannot write {path}: {reason(error)}") from error


def load(
    path: Path, shards: Mapping[str, Tensor] | None = None, needed: Callable[[str], bool] = lambda name: True
) -> dict[str, Any]:
    """Read what `save` wrote, a file or a folder of parts; for a folder, all processes of a group call this together.

    Args:
        shards: sharded tensors of this run by their names in the state, such as `weights.policy.bias`: the tensors of
            these names and of the same shape come back with their layout, of which a process reads only its part. All
            others come back whole, on the CPU.
        needed: tensors in parts that do not have to be read, by name, come back without content (on the meta device).

    Raises:
        ValueError: it is missing, truncated, changed since it was written, or not a flowward checkpoint. For a folder
            in every process.
    """
    shards = shards or {}
    if not path.is_dir():
        tree, tensors = _read(path)
    else:
        with agreed(ValueError):
            shapes = checkpoint_parts.verified(path)
        with agreed(ValueError):
            tree, tensors = _read(path / checkpoint_parts.REST)
            tensors |= checkpoint_parts.read(path, shapes, shards, needed)
    for name in shards.keys() & tensors.keys():
        if not is_split(tensors[name]) and tensors[name].shape == shards[name].shape:
            tensors[name] = sliced(tensors[name], shards[name])
    return _state(path, tree, tensors)


def contents(path: Path) -> list[str]:
    """The keys of a checkpoint, which is checked like in `load`; tensors in parts are not read. Raises like `load`."""
    return list(load(path, needed=lambda name: False))


def _read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The tree and the tensors of one file, whose hash is checked."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
            if (tree := about.get(_TREE)) is None:
                raise ValueError(f"{path} is a safetensors file, but not a flowward checkpoint")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except FileNotFoundError as error:
        raise ValueError(f"there is no checkpoint at {path}") from error
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is truncated or damaged and cannot be read ({error})") from error
    if _HASH in about and about[_HASH] != _hash(tree, tensors):  # older files have none
        raise ValueError(f"{path} is damaged: its content has changed since it was written (its hash does not match)")
    return tree, tensors


def _state(path: Path, tree: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    try:
        state = unpacked(tree, tensors)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: its description of the state cannot be read ({error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} is damaged: it contains no state")
    return state


def _hash(tree: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the tree, and of names, types, shapes and numbers of all tensors."""
    names = sorted(tensors)
    with ThreadPoolExecutor(THREADS) as threads:
        digests = threads.map(_digest, [tensors[name] for name in names])
        known = [[name, *digest] for name, digest in zip(names, digests, strict=True)]
    return hashlib.sha256(json.dumps([tree, known]).encode()).hexdigest()


def _digest(tensor: Tensor) -> tuple[str, list[int], str]:
    data = tensor.reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), list(tensor.shape), hashlib.sha256(data.data).hexdigest()
