"""A checkpoint of sharded tensors (torch DTensor): a folder in which each process writes what it has.

The folder has one safetensors file per process (written and read by torch.distributed.checkpoint), one with everything
else of the state, and a manifest with the size and the SHA-256 of every file. The manifest is written last, and then
the folder gets its name. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from . import distributed, strict_json, whole_files

MANIFEST, REST = "manifest.json", "state.safetensors"
VERSION = 1  # of the manifest
THREADS = 4  # that read or hash files at once
Described = dict[str, tuple[int, str]]  # bytes and SHA-256 of files


@contextmanager
def agreed(kind: type[OSError] | type[ValueError]) -> Iterator[None]:
    """Inside, a process needs no other one. At the end, if one of them has an error of this kind, all raise it."""
    why: str | None = None
    try:
        yield
    except kind as error:
        why = str(error) or type(error).__name__
    if said := distributed.messages(why):
        raise kind(said[0])


class Writing:
    """A checkpoint of parts that is being written. All processes make it together, and finish it together."""

    def __init__(
        self, path: Path, shards: Mapping[str, Tensor], rest: Callable[[Path], None], aside: dist.ProcessGroup | None
    ):
        """Write the shards, and with `rest` a file with everything else.

        Args:
            path: of the folder, in an existing one that all processes see.
            rest: called in the first process, with the path of its file.
            aside: a process group on the CPU that nothing else uses: write in a thread, from copies (None: now).

        Raises:
            OSError: the folder cannot be made, or a process does not see it; in every process.
        """
        self.path, self.partial = path, whole_files.partial_of(path)
        self._shapes = {name: list(tensor.shape) for name, tensor in shards.items()}
        with agreed(OSError), _named(path):
            if distributed.rank() == 0:
                whole_files.begin_folder(path)
        with agreed(OSError):
            if not self.partial.is_dir():  # torch would make one
                raise OSError(
                    f"cannot write {path}: process {distributed.rank()} does not see the folder that process 0 has "
                    "made; all machines need the same run folder, on a disk that they share"
                )
        write = _started(self.partial, {name: _whole_rows(tensor) for name, tensor in shards.items()}, aside)
        self._work: Future[Described] = Future()
        if aside:
            threads = ThreadPoolExecutor(1, "checkpoint")
            self._work = threads.submit(self._written, write, rest)
            threads.shutdown(wait=False)
        else:
            try:
                self._work.set_result(self._written(write, rest))
            except OSError as error:
                self._work.set_exception(error)

    def _written(self, write: Callable[[], None], rest: Callable[[Path], None]) -> Described:
        """Write what this process has to; returns its files."""
        write()
        mine = sorted(self.partial.glob(f"shard-{distributed.rank() + 1:05d}-*"))  # none where all its shards are empty
        if distributed.rank() == 0:
            rest(self.partial / REST)
            mine.append(self.partial / REST)
        return {file.name: (file.stat().st_size, _sha256(file)) for file in mine}

    def done(self) -> bool:
        """Whether this process has written its part."""
        return self._work.done()

    def finish(self) -> None:
        """Wait until all parts are there; then the folder gets its manifest and its name.

        Raises:
            OSError: something could not be written; in every process, and the folder is gone.
        """
        try:
            with agreed(OSError), _named(self.path):
                mine = self._work.result()
            files = {name: facts for each in distributed.told(mine) for name, facts in each.items()}
            with agreed(OSError), _named(self.path):
                if distributed.rank() == 0:
                    self._name(files)
        except OSError:
            if distributed.rank() == 0:
                shutil.rmtree(self.partial, ignore_errors=True)
            raise

    def _name(self, files: Described) -> None:
        facts = {name: {"bytes": size, "sha256": digest} for name, (size, digest) in sorted(files.items())}
        manifest = {"version": VERSION, "files": facts, "tensors": self._shapes}
        if wrong := _incomplete(self.partial, facts):
            raise OSError(wrong)
        whole_files.write(self.partial / MANIFEST, strict_json.dumps(manifest, 1) + "\n")
        whole_files.end_folder(self.path, replace=True, durable=True)


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Inside, an OSError says which checkpoint could not be written, and why in the words of the system."""
    try:
        yield
    except OSError as error:
        text = whole_files.reason(error)
        raise OSError(text if text.startswith("cannot write") else f"cannot write {path}: {text}") from error


def _whole_rows(tensor: Tensor) -> Tensor:
    """The tensor with a contiguous shard: safetensors stores no others."""
    if distributed.part(tensor).is_contiguous():
        return tensor
    copied = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    distributed.part(copied).copy_(distributed.part(tensor))
    return copied


def _started(folder: Path, shards: Mapping[str, Tensor], aside: dist.ProcessGroup | None) -> Callable[[], None]:
    """Begin to write the shards; returns what writes them, or waits for it, and raises OSError in every process."""
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save, save

    # plans need no flattening: the mapping is flat
    how: dict[str, Any] = {
        "storage_writer": HuggingFaceStorageWriter(str(folder), save_distributed=True),
        "planner": DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False),
    }
    begun: Any = async_save(dict(shards), process_group=aside, **how) if aside else None

    def write() -> None:
        try:
            begun.result() if begun else save(dict(shards), **how)
        except CheckpointException as error:
            first = next(iter(error.failures.values()))[0]
            if not isinstance(first, Exception):  # a signal
                raise first from None
            raise OSError(whole_files.reason(first)) from error
        except RuntimeError as error:  # of the collectives; others would have been wrapped
            raise distributed.Deserted(distributed.DESERTED) from error

    return write


def verified(path: Path) -> dict[str, list[int]]:
    """Check a share of the files against the manifest; returns the shapes of the tensors that are stored in parts.

    Raises:
        ValueError: a file is missing or has changed; only in the processes that check it.
    """
    manifest = _manifest(path)
    files = manifest["files"]
    if wrong := _incomplete(path, files):
        raise ValueError(f"{path} is damaged: {wrong}")
    if strange := sorted({file.name for file in path.glob("*.safetensors")} - files.keys()):
        raise ValueError(f"{path} is damaged: {strange[0]} does not belong to it")
    mine = sorted(files, key=lambda name: (-files[name]["bytes"], name))[distributed.rank() :: distributed.count()]
    with ThreadPoolExecutor(THREADS) as threads:
        for name, found in zip(mine, threads.map(_sha256, [path / name for name in mine]), strict=True):
            if found != files[name]["sha256"]:
                raise ValueError(
                    f"{path} is damaged: the content of {name} has changed since it was written (its hash does not "
                    "match)"
                )
    shapes: dict[str, list[int]] = manifest["tensors"]
    return shapes


def _manifest(path: Path) -> dict[str, Any]:
    try:
        found = strict_json.loads((path / MANIFEST).read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is damaged: {MANIFEST} is missing") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {MANIFEST} cannot be read ({error})") from error
    try:
        sound = found["version"] == VERSION and all(
            Path(name).name == name and isinstance(facts["bytes"], int) and isinstance(facts["sha256"], str)
            for name, facts in found["files"].items()
        )
        sound = sound and all(isinstance(size, int) for shape in found["tensors"].values() for size in shape)
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise ValueError(f"{path} is damaged: {MANIFEST} is not what flowward writes")
    return dict(found)


def _incomplete(path: Path, files: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What is wrong with the sizes of the files."""
    for name, facts in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else None
        if size != facts["bytes"]:
            return f"{name} is missing" if size is None else f"{name} has {size:,} bytes instead of {facts['bytes']:,}"
    return None


def _sha256(file: Path) -> str:
    try:
        with open(file, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise OSError(f"cannot read {file}: {error.strerror or error}") from error


def read(
    path: Path, shapes: Mapping[str, list[int]], shards: Mapping[str, Tensor], needed: Callable[[str], bool]
) -> dict[str, Tensor]:
    """Read the tensors that are stored in parts; no process waits for another.

    Args:
        shards: see `checkpoint.load`.
        needed: which tensors to read, by name; the others are empty (on the meta device).

    Raises:
        ValueError: the parts do not give whole tensors, or cannot be read.
    """
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    reader = HuggingFaceStorageReader(str(path), thread_count=THREADS)
    found: dict[str, Tensor] = {}
    try:
        known = reader.read_metadata().state_dict_metadata
        for name, shape in shapes.items():
            facts: Any = known.get(name)
            if facts is None or sum(math.prod(chunk.sizes) for chunk in facts.chunks) != math.prod(shape):
                raise ValueError(f"{path} is damaged: its files have only a part of {name}")
            dtype, like = facts.properties.dtype, shards.get(name)
            if like is not None and list(like.shape) == shape:
                found[name] = torch.empty_like(like.detach(), dtype=dtype)
            else:
                found[name] = torch.empty(shape, dtype=dtype, device="cpu" if needed(name) else "meta")
        wanted: dict[str, Any] = {name: tensor for name, tensor in found.items() if tensor.device.type != "meta"}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that no other process takes part
            planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
            load(wanted, storage_reader=reader, planner=planner, no_dist=True)
    except (Exception, CheckpointException) as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        why = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        raise ValueError(f"{path} is truncated or damaged and cannot be read ({why})") from error
    return found


def sliced(whole: Tensor, like: Tensor) -> Tensor:
    """A tensor of the same layout as `like`, filled with this process's part of a whole one."""
    found = torch.empty_like(like.detach(), dtype=whole.dtype)
    chunk = like.__create_chunk_list__()[0]  # type: ignore[attr-defined]
    part = whole[tuple(slice(start, start + size) for start, size in zip(chunk.offsets, chunk.sizes, strict=True))]
    distributed.part(found).copy_(part)
    return found
