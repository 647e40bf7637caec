"""LoRA files in the layouts of diffusers, kohya, ai-toolkit and peft, as adapters for the layers of a model.

Layers are found by name. A layout with names of its own is first converted by the model's family, for most of them with
the `lora_state_dict` of diffusers. In a LoRA, layers may have different ranks and scales. Here all get one rank and one
scale: B is rescaled, and columns of 0 are added to it. The network computes the same.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from . import hub, names, targets
from .adapters import Adapters, Reference

MATRIX = re.compile(r"(.+)\.(lora_A|lora_down|lora\.down|lora_B|lora_up|lora\.up)(?:\.\w+)?\.weight")
A = ("lora_A", "lora_down", "lora.down")
PREFIXES = re.compile(r"^(?:base_model\.model\.|model\.diffusion_model\.|diffusion_model\.|transformer\.|unet\."
                      r"|lora_unet_|lora_transformer_)+")  # fmt: skip
TEXT = re.compile(r"(?:base_model\.model\.)?(?:text_encoder|lora_te|text_model\.|cond_stage_model\.|conditioner\.)")
Convert = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
KINDS = {
    "dora_scale": "a DoRA", "lora_magnitude_vector": "a DoRA", "lokr_": "a LoKr", "hada_": "a LoHa", "oft_": "an OFT",
}  # fmt: skip
WHOLE = (".diff", ".diff_b", ".bias")  # changes of whole tensors, beside adapters
UNCONVERTED = (ValueError, LookupError, TypeError, AttributeError, RuntimeError, AssertionError)  # of diffusers


@dataclass(frozen=True)
class Start:
    """A LoRA on the layers of a model."""

    file: Path
    sha256: str
    rank: int
    alpha: float
    targets: tuple[str, ...]
    layers: dict[str, tuple[Tensor, Tensor]]  # by layer: A [r, in] and B [out, r], with r <= rank
    notes: tuple[str, ...] = ()

    def adapters(self, reference: Reference | None = None) -> Adapters:
        return Adapters(self.rank, self.alpha, self.targets, reference=reference or "init")


@dataclass
class _Layer:
    """What a file holds for one layer."""

    a: Tensor | None = None
    b: Tensor | None = None
    alpha: float | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class _About:
    """What a file says about the scale of its layers, beside `.alpha` tensors."""

    alpha: float | None = None
    patterns: Mapping[re.Pattern[str], float] = field(default_factory=dict)
    rank_stabilised: bool = False
    base: str | None = None  # the model that it was made for

    def scale(self, layer: str, rank: int) -> float:
        own = (alpha for key, alpha in self.patterns.items() if re.match(rf"(.*\.)?({key.pattern})$", layer))
        alpha = next(own, self.alpha)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if self.rank_stabilised else rank)


def read(name: str, parts: Mapping[str, Any], network: Any, convert: Convert | None = None) -> Start:
    """A LoRA for the transformers of a pipeline.

    Args:
        name: a file or folder, or owner/name on the hub.
        parts: the transformers by their names in the pipeline.
        network: the network that holds them all.
        convert: gives the tensors of other layouts the names of diffusers.

    Raises:
        ValueError: it cannot be read, is another kind of adapter, or has layers that the model does not have.
    """
    file = names.lora(_downloaded(name))
    files, notes = {"transformer": file}, list[str]()
    if "transformer_2" in parts and (other := file.parent / "transformer_2" / file.name).is_file():
        files["transformer_2"] = other
    layers: dict[str, _Layer] = {}
    digest = hashlib.sha256()
    for component, each in files.items():
        tensors = _tensors(each)
        digest.update(each.read_bytes())
        about = _about(each)
        text = [key for key in tensors if TEXT.match(key)]
        if text:
            notes.append(f"the {len(text)} tensors of {each} for text encoders are not used: they are not trained")
        mine = {key: tensor for key, tensor in tensors.items() if key not in text}
        if not mine:
            raise ValueError(f"{each} is a LoRA of text encoders alone, which are not trained here")
        layers |= _placed(mine, each, about, component, parts, convert)
    found = _checked(layers, file, network)
    rank, scale = max(len(a) for a, _, _ in found.values()), _common(own for _, _, own in found.values())
    notes.insert(0, f"training starts from the LoRA {file}: rank {rank}, alpha {scale * rank:g}, {len(found)} layers")
    if untouched := [part for part in parts if part not in files and not _has(found, part, parts)]:
        notes.append(f"{file} has no layers of {untouched[0]}, so that one is not trained")
    if len({len(a) for a, _, _ in found.values()}) > 1:
        notes.append(f"the layers of {file} have different ranks; all are trained with the largest, {rank}")
    even = {key: (a, b * (own / scale) if own != scale else b) for key, (a, b, own) in found.items()}
    named = targets.named(network, even)
    return Start(file, digest.hexdigest(), rank, scale * rank, named, even, tuple(notes))


def _has(layers: Iterable[str], part: str, parts: Mapping[str, Any]) -> bool:
    return len(parts) == 1 or any(name.startswith(f"{part}.") for name in layers)


def _downloaded(name: str) -> str:
    """The folder of a LoRA on the hub; other names as they are."""
    if Path(name).expanduser().exists() or not names.is_pipeline(name):
        return name
    return str(hub.folder(names.located(name), ["*.safetensors", "*.json"]))


def _tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a file in float32.

    Raises:
        ValueError: it cannot be read, or is no LoRA.
    """
    try:
        found = {key: tensor.float() for key, tensor in load_file(file).items()}
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    for key in found:
        if kind := next((kind for mark, kind in KINDS.items() if mark in key), None):
            raise ValueError(f"{file} is {kind} ('{key}'), which cannot be trained here; merge it into the model first")
    if not any("lora" in key for key in found):
        raise ValueError(f"{file} is not a LoRA: it has no tensors with 'lora' in their names")
    strange = [key for key in found if key.endswith(WHOLE) or not ("lora" in key or key.endswith(".alpha"))]
    if changed := [key for key in strange if found[key].any()]:
        raise ValueError(f"{file} changes more than a LoRA can ('{changed[0]}'); merge it into the model first")
    if bad := next((key for key, tensor in found.items() if not tensor.isfinite().all()), None):
        raise ValueError(f"{file} is damaged: '{bad}' has values that are NaN or infinite")
    if bad := next((key for key in found if key.endswith(".alpha") and not (found[key] > 0).all()), None):
        raise ValueError(f"{file} has {bad} = {found[bad].tolist()}; it must be positive")
    return {key: tensor for key, tensor in found.items() if key not in strange}


def _about(file: Path) -> _About:
    """From adapter_config.json of peft, or the header that diffusers or kohya writes.

    Raises:
        ValueError: they are damaged, or describe a DoRA.
    """
    header, config = names.header_of(file), file.parent / "adapter_config.json"
    try:
        if given := header.get("lora_adapter_metadata"):
            known = {key.partition(".")[2]: value for key, value in json.loads(given).items()}
        elif config.is_file():
            known = json.loads(config.read_text("utf-8"))
        else:
            kohya = header.get("ss_network_alpha", "None")
            known = {} if kohya == "None" else {"lora_alpha": kohya}
        alpha = known.get("lora_alpha")
        patterns = {re.compile(key): float(value) for key, value in (known.get("alpha_pattern") or {}).items()}
        about = _About(None if alpha is None else float(alpha), patterns, bool(known.get("use_rslora")))
    except (ValueError, AttributeError, TypeError, OSError, re.error) as error:
        raise ValueError(f"the description of {file} is damaged: {error}") from error
    if known.get("use_dora"):
        raise ValueError(f"{file} is a DoRA, which cannot be trained here; merge it into the model first")
    base = header.get("ss_base_model_version") or known.get("base_model_name_or_path")
    return replace(about, base=base if isinstance(base, str) else None)


def _placed(
    tensors: dict[str, Tensor],
    file: Path,
    about: _About,
    component: str,
    parts: Mapping[str, Any],
    convert: Convert | None,
) -> dict[str, _Layer]:
    """Layers by their names in the network; tensors are converted if their names are not found there.

    Raises:
        ValueError: some are not found even then.
    """
    found, lost = _by_layer(tensors, component, parts)
    if lost:
        renamed = _converted(tensors, convert)
        converted, still = _by_layer(renamed, component, parts)
        if still or not converted or _energy(renamed) < 0.999 * _energy(tensors):
            made_for = f"; it was made for {about.base}" if about.base else ""
            raise ValueError(
                f"{file} has adapters for layers that {type(parts[component]).__name__} does not have, such as "
                f"'{(still or lost)[0]}'{made_for}"
            )
        found = converted
        if any(key.endswith(".alpha") for key in tensors):  # of which the conversion has taken care
            about = replace(about, alpha=None, patterns={})
    for name, layer in found.items():
        if layer.a is not None and layer.a.ndim == 2 and (rank := len(layer.a)):  # others are refused later
            layer.scale = about.scale(name, rank) if layer.alpha is None else layer.alpha / rank
    return found


def _converted(tensors: dict[str, Tensor], convert: Convert | None) -> dict[str, Tensor]:
    """The tensors under the names of diffusers; none if they cannot be converted."""
    try:
        return convert(tensors) if convert else {}
    except UNCONVERTED:
        return {}


def _energy(tensors: Mapping[str, Tensor]) -> float:
    """The sum of |alpha / rank B A|^2 over all layers. It falls if a conversion drops a layer without a word."""
    pairs: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if match := MATRIX.fullmatch(key):
            pairs.setdefault(match[1], {})["a" if match[2] in A else "b"] = tensor.flatten(1)
    total = 0.0
    for stem, pair in pairs.items():
        if len(pair) == 2 and len(pair["a"]) == pair["b"].shape[1]:
            alpha = tensors.get(f"{stem}.alpha")
            scale = 1.0 if alpha is None else alpha.sum().item() / len(pair["a"])
            total += scale**2 * ((pair["b"].T @ pair["b"]) * (pair["a"] @ pair["a"].T)).sum().item()
    return total


def _by_layer(
    tensors: Mapping[str, Tensor], component: str, parts: Mapping[str, Any]
) -> tuple[dict[str, _Layer], list[str]]:
    """Tensors by the layer that they belong to, and the names of layers that are not found."""
    tables = {part: {name.replace(".", "_"): name for name in targets.linear(own)} for part, own in parts.items()}
    found: dict[str, _Layer] = {}
    lost: dict[str, None] = {}
    for key, tensor in tensors.items():
        match = MATRIX.fullmatch(key)
        stem = match[1] if match else key.removesuffix(".alpha")
        part, inner = ("transformer_2", stem[14:]) if stem.startswith("transformer_2.") else (component, stem)
        name = tables.get(part, {}).get(PREFIXES.sub("", inner, count=1).replace(".", "_"))
        if name is None or (match is None and not (key.endswith(".alpha") and tensor.numel() == 1)):
            lost[stem] = None
            continue
        layer = found.setdefault(name if len(parts) == 1 else f"{part}.{name}", _Layer())
        what = "alpha" if match is None else "a" if match[2] in A else "b"
        if getattr(layer, what) is not None:  # a second adapter of one layer
            lost[stem] = None
        setattr(layer, what, tensor.item() if what == "alpha" else tensor)
    return found, list(lost)


def _checked(layers: Mapping[str, _Layer], file: Path, network: Any) -> dict[str, tuple[Tensor, Tensor, float]]:
    """A, B and the scale of every layer.

    Raises:
        ValueError: a matrix is missing, has another shape than the layer, or the scale is not positive.
    """
    found, own = {}, targets.linear(network)
    for name, layer in layers.items():
        a, b, shape = layer.a, layer.b, (own[name].out_features, own[name].in_features)
        if a is None or b is None:
            raise ValueError(f"{file} is damaged: layer '{name}' has only one of its two matrices")
        if a.ndim != 2 or b.ndim != 2 or not 0 < len(a) == b.shape[1] or (b.shape[0], a.shape[1]) != shape:
            raise ValueError(
                f"{file} was made for another model: layer '{name}' has {shape[1]} inputs and {shape[0]} outputs, but "
                f"its matrices have shapes {list(a.shape)} and {list(b.shape)}"
            )
        if not layer.scale > 0:
            raise ValueError(f"the scale of layer '{name}' in {file} is {layer.scale:g}; it must be positive")
        found[name] = (a, b, layer.scale)
    return found


def _common(scales: Iterable[float]) -> float:
    """The scale of most layers."""
    return float(Counter(scales).most_common(1)[0][0])
