"""Load a diffusers pipeline from a folder or the hub as a Policy."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import hf_hub_download

from ..system import memory
from ..system.errors import unknown
from ..system.precision import Wish, resolve
from ..system.terminal import tell
from . import catalogue, compiling, gelu, hub, norms, observed, sharding
from .adapters import Adapters
from .diffusers import DiffusersPolicy
from .families import FAMILIES, Family
from .layout import Layout
from .loading import Loading
from .lora import LoRA
from .text_encoders import TextEncoders, files
from .weights import Full, Placement

OFFLOADED = ("reference", "ema")  # copies that may lie in the memory of the host


def load(
    name_or_path: str, adapters: Adapters | int | None, precision: Wish, seed: int, loading: Loading, layout: Layout
) -> DiffusersPolicy:
    """Load a pipeline by its folder or hub id. It runs no code and reads no pickle from there.

    Raises:
        ValueError: it cannot be found or read, or its family or the device is unknown.
    """
    hub.quiet()
    if not sys.stderr.isatty():
        diffusers.logging.disable_progress_bar()
    found = index(name_or_path, loading.revision)
    kind, written = found["_class_name"], found["_class_name"] in FAMILIES
    if loading.quantise and (adapters is None or loading.merge_lora == "always"):
        raise ValueError("quantised weights are frozen; train LoRA adapters (--lora-rank), without --merge-lora always")
    if loading.merge_lora == "always" and isinstance(adapters, Adapters) and adapters.palette:
        raise ValueError("a palette has other weights in every row, so it cannot be merged: leave out --merge-lora")
    _refuse_layout(layout, loading, adapters is None, kind)
    transformers = [name for name in ("transformer", "transformer_2") if found.get(name, [None])[0]]
    device = hub.device(loading.device)
    chosen = resolve(precision, device)
    stored = torch.bfloat16 if chosen == "bf16" else torch.float32
    trained = torch.float32 if adapters is None else stored  # bf16 would lose small optimiser steps
    quantised = _quantised(loading.quantise, transformers, device)
    pipeline = getattr(diffusers, kind)
    with hub.explained(name_or_path), hub.whole():
        folder = Path(name_or_path)
        if not folder.is_dir():
            here = pipeline.download(
                name_or_path, revision=loading.revision, variant=loading.variant, use_safetensors=True
            )
            folder = Path(here)
        read_late = [name for name in found if name.startswith("text_encoder")]
        names = tuple(name for name in read_late if written and files(folder / name, loading.variant))
        split = _split({name: found[name][1] for name in transformers}, folder, trained, device, layout, loading)
        pipe = pipeline.from_pretrained(
            folder,
            variant=loading.variant,
            dtype={"default": stored, **dict.fromkeys(transformers, trained)},
            use_safetensors=True,
            quantization_config=quantised,
            **dict.fromkeys((*names, *(FAMILIES[kind].unused if written else ()))),
            **{name: part.read() for name, part in split.items()},
        )
        _refuse_holes(pipe)
    with memory.explained(f"while moving {name_or_path} to {device}; --quantise makes its transformer smaller"):
        pipe = pipe.to(device)
    family, asked = shaped(pipe, loading), loading
    plain = device == "cpu" and chosen == "float32"
    loading = compiling.possible(loading, layout, family, adapters, chosen == "bf16")
    prepared(family, loading, layout, plain)
    unread = TextEncoders(name_or_path, pipeline, folder, names, loading.variant, stored, device) if names else None
    policy = DiffusersPolicy(
        name_or_path, family, adapters, chosen, seed, unread, _placement(family, split, layout, loading, plain)
    )
    policy.loading = asked
    if isinstance(policy.weights, LoRA):
        policy.weights.merge = merges(policy.weights, loading)
    _compile(policy, loading)
    return policy


def _compile(policy: DiffusersPolicy, loading: Loading) -> None:
    """Compile its blocks as far as asked for; `auto` leaves it to a run (training/blocks.py)."""
    if loading.compile_blocks == "graphs":
        policy.replay(compiling.Graphs())
    elif loading.compile_blocks == "always":
        compiling.compile_all(policy.weights)


def merges(weights: LoRA, loading: Loading) -> bool:
    """Whether rollouts merge these adapters: always if asked for, else where they save kernels and change nothing.

    That is in half precision: an adapter's effect is rounded with the activations either way (docs/notes/speed.md).
    """
    able = not weights.palette and not weights.collective
    return loading.merge_lora == "always" or (loading.merge_lora == "auto" and able and weights.half is not None)


def _refuse_uneven(family: Family, processes: int) -> None:
    """Raise ValueError if this many processes cannot share the sequence of a sample in equal parts."""
    if processes == 1:
        return
    if (kind := type(family.pipe.transformer))._cp_plan is None:
        raise ValueError(f"{kind.__name__} cannot share a sequence among processes: leave out --context-parallel")
    for what, length in family.parts.items():
        if length % processes:
            raise ValueError(f"{length} {what} cannot be shared equally by --context-parallel {processes}: change one")


def _refuse_layout(layout: Layout, loading: Loading, full: bool, kind: str) -> None:
    """Raise ValueError if the weights cannot lie as asked; `kind` is the class of the pipeline."""
    if layout.shard != "none" and kind not in FAMILIES:  # how many passes rows need depends on their lengths
        raise ValueError(f"{kind} has no written family, so its weights cannot be split: leave out --shard")
    if layout.shard != "none" and loading.quantise:
        raise ValueError("quantised weights cannot be split among processes: leave out --quantise or --shard")
    if layout.shard != "none" and loading.merge_lora == "always":
        raise ValueError("adapters cannot be merged into weights that are split: leave out --merge-lora or --shard")
    if layout.offload_copies and not full:
        raise ValueError(
            "--offload-copies is for runs that train all weights; the copies of LoRA adapters are small: leave it out"
        )


def _split(
    kinds: Mapping[str, str], folder: Path, dtype: torch.dtype, device: str, layout: Layout, loading: Loading
) -> dict[str, sharding.Stored]:
    """The transformers that are split among processes, by name; `kinds` are the names of their classes."""
    mesh = sharding.mesh_of(layout.shard, device)
    if mesh is None:
        return {}
    return {
        name: sharding.Stored(getattr(diffusers, kind), folder / name, loading.variant, dtype, mesh, device)
        for name, kind in kinds.items()
    }


def _placement(
    family: Family, split: Mapping[str, sharding.Stored], layout: Layout, loading: Loading, plain: bool
) -> Placement:
    """Where the weights lie; `split` are the transformers that are split among processes, if they are."""
    on_host = OFFLOADED if layout.offload_copies else ()
    if not split:
        return Placement(partial(Full, on_host=on_host))

    def another(hosted: bool) -> torch.nn.Module:
        made = {name: each.empty(hosted) for name, each in split.items()}
        _tuned(list(made.values()), loading, layout, plain)
        joined: torch.nn.Module = family.joined(made)
        return joined

    full = partial(sharding.Split, another=another, on_host=on_host)
    return Placement(full, collective=True, base=sharding.fingerprint(split))


def _refuse_holes(pipe: Any) -> None:
    """Raise ValueError if diffusers files lack weights (`hub.whole` checks those of transformers)."""
    for part, network in pipe.components.items():
        tensors = network.named_parameters() if isinstance(network, torch.nn.Module) else ()
        if missing := [name for name, tensor in tensors if tensor.is_meta]:
            raise ValueError(
                f"the files of its {part} lack {len(missing)} weights, such as {missing[0]}; download them again"
            )


def shaped(pipe: Any, loading: Loading) -> Family:
    """The family of a pipeline, set up for the requested size.

    Raises:
        ValueError: the model does not support this size.
    """
    given: dict[str, Any] = {"text_tokens": loading.text_tokens}
    if loading.size:
        given["height"], given["width"] = loading.size
    if loading.frames:
        given["frames"] = loading.frames
    if loading.seconds:
        given["seconds"] = loading.seconds
    if written := FAMILIES.get(kind := type(pipe).__name__):
        return written(pipe, **given)
    family = observed.family_of(kind, catalogue.edits(kind))(pipe, **given)
    for sentence in (family.described(), *family.notes):
        tell(sentence)
    return family


def prepared(family: Family, loading: Loading, layout: Layout, plain: bool = False) -> None:
    """Switch on the requested memory and speed options of diffusers.

    Args:
        plain: the networks compute in float32 on a processor.

    Raises:
        ValueError: this model or this machine does not support one of them.
    """
    transformers = list(family.transformers.values())
    if family.by_length and layout.shard != "none":
        raise ValueError(
            f"{type(family.pipe).__name__} makes a pass for every length of text, so its weights cannot be split among "
            "processes, which need equally many passes: leave out --shard"
        )
    _refuse_uneven(family, layout.context_parallel)
    family.together = layout.context_parallel
    wanted = {
        "gradient checkpointing": (loading.gradient_checkpointing, transformers, "enable_gradient_checkpointing"),
        "VAE slicing": (loading.vae_slicing, [family.pipe.vae], "enable_slicing"),
        "VAE tiling": (loading.vae_tiling, [family.pipe.vae], "enable_tiling"),
    }
    for what, (asked, parts, method) in wanted.items():
        for part in parts if asked else ():
            try:
                getattr(part, method)()
            except (AttributeError, ValueError, NotImplementedError) as error:
                raise ValueError(f"{type(part).__name__} does not support {what}; leave out the option") from error
    _tuned(transformers, loading, layout, plain)


def _tuned(transformers: Sequence[Any], loading: Loading, layout: Layout, plain: bool) -> None:
    """Fuse the norms of transformers, and quicken GELU where they are `plain`.

    If requested, choose their attention, let teams share sequences.

    Raises:
        ValueError: this machine does not support that attention.
    """
    for transformer in transformers:
        norms.fuse(transformer)
        if plain:
            gelu.quicken(transformer)
    for transformer in transformers if loading.attention else ():
        try:
            transformer.set_attention_backend(loading.attention)
        except (ValueError, RuntimeError, ImportError) as error:
            raise ValueError(
                f"cannot use attention '{loading.attention}': {' '.join(str(error).split())[:200]}"
            ) from error
    for transformer in transformers if layout.context_parallel > 1 else ():
        sharding.share_sequence(transformer, layout.context_parallel, str(next(transformer.parameters()).device))


def _quantised(how: str | None, components: Sequence[str], device: str) -> Any:
    """The diffusers settings to quantise these components of a pipeline; None if not asked for.

    Raises:
        ValueError: a package is missing, or does not support this device.
    """
    try:
        match how:
            case None:
                return None
            case "int8":
                from torchao.quantization import Int8WeightOnlyConfig

                config: Any = diffusers.TorchAoConfig(Int8WeightOnlyConfig())
            case _:
                import bitsandbytes  # noqa: F401

                if device == "cpu":
                    raise ValueError("--quantise nf4 needs a CUDA device; use --quantise int8, or leave it out")
                config = diffusers.BitsAndBytesConfig(
                    load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
                )
    except ImportError as error:
        raise ValueError(f"--quantise {how} needs a package: pip install 'flowward[quantise]' ({error})") from error
    return diffusers.PipelineQuantizationConfig(quant_mapping={name: config for name in components})


def index(name_or_path: str, revision: str | None) -> dict[str, Any]:
    """Read the class and components of a pipeline, before loading anything large.

    Raises:
        ValueError: it cannot be read, its family is unknown, or a package that it needs is missing.
    """
    file = Path(name_or_path) / "model_index.json"
    if not file.is_file():
        with hub.explained(name_or_path):
            file = Path(hf_hub_download(name_or_path, "model_index.json", revision=revision))
    try:
        found = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is not a JSON object")
    if (kind := str(found.get("_class_name"))) not in FAMILIES:
        settings = file.parent / "scheduler" / "scheduler_config.json"
        if why := _unobservable(kind, found, json.loads(settings.read_text("utf-8")) if settings.is_file() else None):
            raise ValueError(f"{name_or_path}: {why}")
        return found
    if missing := [package for package in FAMILIES[kind].needs if not find_spec(package)]:
        raise ValueError(f"{name_or_path} needs the package {missing[0]}: pip install {missing[0]}")
    return found


def _unobservable(kind: str, found: Mapping[str, Any], scheduler: Mapping[str, Any] | None) -> str | None:
    """Why a pipeline without a written family cannot be observed, as far as its settings say; None: it can be tried."""
    known = getattr(diffusers, kind, None)
    if not (isinstance(known, type) and issubclass(known, diffusers.DiffusionPipeline)):
        made_by = str(found.get("_diffusers_version", ""))
        if _release(made_by) > _release(diffusers.__version__):
            return (
                f"it was made by diffusers {made_by}; yours ({diffusers.__version__}) has no {kind}: "
                "pip install --upgrade diffusers"
            )
        return unknown("pipeline", kind, FAMILIES)
    if reason := catalogue.refusal(kind):
        return f"{kind} cannot be trained: {reason}"
    return observed.refusal(kind, found, scheduler)


def _release(version: str) -> tuple[int, ...]:
    """0.42.1.dev0 is (0, 42, 1)."""
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
