"""Export trained weights as files for diffusers, with facts about their training."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import diffusers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .. import __version__
from ..models import LORA_FILE
from ..models.diffusers import DiffusersPolicy
from ..models.lora import LoRA
from ..process.policy import Policy
from ..system import strict_json, whole_files
from ..system.whole_files import discard, flush, permit, reason
from ..training.record import Record
from .exported import FACTS, transformers


@contextmanager
def whole(folder: Path) -> Iterator[None]:
    """Inside, a folder that is empty or missing is filled. If that fails, it is as it was before.

    Raises:
        OSError: a file cannot be written.
    """
    new, others = not folder.exists(), set(folder.glob("*"))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
        for path in (*filter(Path.is_file, folder.rglob("*")), folder):
            flush(path)
    except BaseException as error:
        for path in set(folder.glob("*")) - others:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else discard(path)
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        if isinstance(error, (OSError, SafetensorError)):
            raise OSError(f"cannot write {folder}: {reason(error)}; nothing was written there") from error
        raise


def lora(policy: Policy, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write the adapters of `policy` for `pipeline.load_lora_weights(folder)`; a palette as one file per adapter.

    `about` is stored in the header of the file, as JSON under the key `flowward`.

    Raises:
        ValueError: all weights were trained, so there are no adapters.
        OSError: the file cannot be written.
    """
    trained = policy.weights
    if not isinstance(trained, LoRA):
        raise ValueError("this run trained all weights, so there is no LoRA to export: use export.merged instead")
    pipe: Any = diffusers.StableDiffusion3Pipeline
    if isinstance(policy, DiffusersPolicy) and hasattr(policy.family.pipe, "save_lora_weights"):
        pipe = type(policy.family.pipe)  # others read the same file
    described = {"version": __version__, **(about or {})}
    if not trained.palette:
        _write_parts(policy, pipe, folder, LORA_FILE, trained.export("policy"), described)
        return folder / LORA_FILE
    names = files_of(trained.palette)
    for own, tensors in trained.parts("policy").items():
        _write_parts(policy, pipe, folder, names[own], tensors, {**described, "adapter": own})
    Record(folder).write_text(FACTS, strict_json.dumps({**described, "palette": names}, 2) + "\n")
    return folder / FACTS


def files_of(palette: Sequence[str]) -> dict[str, str]:
    """A file for each adapter of a palette. Without its ending it is a name that diffusers and peft allow."""
    found: dict[str, str] = {}
    for own in palette:
        stem = re.sub(r"\W+", "_", own, flags=re.ASCII).strip("_") or "adapter"
        taken = {Path(file).stem for file in found.values()}
        free = (stem if number == 1 else f"{stem}_{number}" for number in count(1))
        found[own] = f"{next(name for name in free if name not in taken)}.safetensors"
    return found


def _write_parts(
    policy: Policy, pipe: Any, folder: Path, file: str, tensors: dict[str, Tensor], about: Mapping[str, Any]
) -> None:
    """One adapter, as one file per transformer of the pipeline."""
    trained: Any = policy.weights
    for name, own in _by_component(policy, tensors).items():
        _write(
            pipe, (folder if name == "transformer" else folder / name) / file, own, trained, strict_json.dumps(about)
        )


def _by_component(policy: Policy, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The adapters of each transformer of a pipeline; with two transformers, names start with the component."""
    names = list(policy.family.transformers) if isinstance(policy, DiffusersPolicy) else ["transformer"]
    if len(names) == 1:
        return {names[0]: tensors}
    return {
        name: {
            key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")
        } for name in names
    }  # fmt: skip


def _write(pipe: Any, file: Path, tensors: dict[str, Tensor], trained: LoRA, described: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pipe.save_lora_weights(
        file.parent,
        transformer_lora_layers=tensors,
        transformer_lora_adapter_metadata=_in_order(trained.config.to_dict() | trained.single()),
        weight_name=file.name,
    )
    with safe_open(file, "pt") as opened:
        header = opened.metadata() or {}
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 (it is not a mapping)
    whole_files.write(file, _header_in_order(save(tensors, {**header, "flowward": described})))


def _in_order(metadata: dict[str, Any]) -> dict[str, Any]:
    """Sets as sorted lists: their own order changes from one process to the next."""
    return {key: sorted(value) if isinstance(value, set) else value for key, value in metadata.items()}


def _header_in_order(content: bytes) -> bytes:
    """A safetensors file with the entries of its metadata in alphabetical order; safetensors writes them in any."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    header = {"__metadata__": dict(sorted(header.pop("__metadata__").items())), **header}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def stored(network: nn.Module) -> str:
    """The data type of its weights: float32, bfloat16 ..."""
    return str(next(network.parameters()).dtype).removeprefix("torch.")


def merged(policy: Policy, folder: Path, about: Mapping[str, Any] | None = None) -> Path:
    """Write the whole transformer (or both) with the adapters merged in. The policy cannot be trained afterwards.

    Weights are added in float32 and rounded once, to the data type of the model. bf16 has 8 significant bits: an
    adapter change below 1/512 of a weight is lost. Separate adapters do not have this loss.

    `about` is stored in flowward.json next to it, since the files of diffusers store neither origin nor precision.

    Raises:
        ValueError: the policy is a palette.
        OSError: the files cannot be written.
    """
    if policy.weights.palette:
        raise ValueError("a palette has no single weights to merge: leave out --merged, and mix its adapters")
    with policy.weights.network("policy") as network:
        if isinstance(policy.weights, LoRA):
            network.fuse_lora(adapter_names=["policy"])
            network.unload_lora()
    parts = transformers(policy)
    for name, part in parts.items():
        part.save_pretrained(folder / name)  # type: ignore[operator]
        permit(*(folder / name).glob("*.safetensors"))
    said = {"version": __version__, **(about or {}), "dtype": stored(parts["transformer"])}
    Record(folder).write_text(FACTS, strict_json.dumps(said, 2) + "\n")
    return folder / "transformer"
