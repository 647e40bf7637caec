"""The linear layers of a network by name, and which of them get LoRA adapters."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import nn

NEAR = 0.5  # likeness from which a name is proposed
PROJECTION = re.compile(r"(.*\.)?(\w*_)?(q|k|v|query|key|value)(_proj)?")  # of an attention: to_q, add_k_proj, to_value


def linear(network: Any) -> dict[str, Any]:
    """The linear layers by their names in the network. One with an adapter is the layer in it, under its own name."""
    every = {name: layer for name, layer in network.named_modules() if isinstance(layer, nn.Linear)}
    return {name.removesuffix(".base_layer"): layer for name, layer in every.items() if ".lora_" not in name}


def chosen(network: Any, targets: Iterable[str]) -> list[str]:
    """Names of the linear layers that the targets mean, in the order of the network."""
    wanted = tuple(targets)
    return [name for name in linear(network) if any(_means(target, name) for target in wanted)]


def _means(target: str, name: str) -> bool:
    if target.startswith("^"):
        return name == target[1:]
    return name == target or name.endswith(f".{target}")


def refuse_unknown(network: Any, targets: Iterable[str]) -> None:
    """Raise ValueError for a target without a layer; it proposes layers with similar names."""
    names = linear(network)
    for target in targets:
        if any(_means(target, name) for name in names):
            continue
        kinds = {_kind(name) for name in names}
        ends = {".".join(kind.split(".")[start:]) for kind in kinds for start in range(kind.count(".") + 1)}
        words = sorted(end for end in ends if not end[0].isdigit())
        near = difflib.get_close_matches(target, words, n=3, cutoff=NEAR)
        said = f"did you mean {' or '.join(near)}?" if near else f"the layers are {', '.join(sorted(kinds))}"
        raise ValueError(f"{type(network).__name__} has no linear layer '{target}' for LoRA adapters; {said}")


def _kind(name: str) -> str:
    """The name of a layer within its block: transformer_blocks.3.attn.to_q is attn.to_q."""
    return re.sub(r"^.*?\.\d+\.", "", name)


def named(network: Any, layers: Collection[str]) -> tuple[str, ...]:
    """The shortest sorted targets that mean exactly these layers."""
    kinds = {_kind(name) for name in layers}
    short = {*chosen(network, kinds)} == {*layers}
    return tuple(sorted(kinds if short else {f"^{name}" for name in layers}))


def together(network: nn.Module, layers: Mapping[str, Any]) -> list[list[int]]:
    """Groups of layers, by their numbers: those of one group are expected to read one and the same input.

    These are query, key and value of one attention. Where it attends to another sequence, query is alone.
    """
    found = dict[tuple[Any, ...], list[int]]()
    for number, (name, layer) in enumerate(layers.items()):
        key: tuple[Any, ...] = (name,)
        if fits := PROJECTION.fullmatch(name):
            parent, before, letter, after = fits.groups("")
            attention = network.get_submodule(parent.removesuffix("."))
            crossed = getattr(attention, "is_cross_attention", parent.endswith("cross_attention."))
            apart = letter in ("q", "query") and crossed
            key = (parent, before, after, apart, layer.in_features)
        found.setdefault(key, []).append(number)
    return list(found.values())
