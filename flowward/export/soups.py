"""Palettes put together from adapters that were trained one by one on the same model (rewarded soups)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..models.adapters import Adapters
from ..models.lora import LoRA
from ..process.policy import Policy

OWN = ("weights", "layers")  # entries of an identity in which adapters of one model may differ


@torch.no_grad()
def joined(parts: Iterable[tuple[str, Policy]], base: Callable[[Adapters], Policy]) -> Policy:
    """A palette of separately trained adapters, v(x; theta + sum_k w_k B_k A_k).

    Mixing adapters by their weights is a rewarded soup (Rame et al., 2023, arXiv:2306.04488): no training at the mixed
    weights. Smaller ranks are padded with 0; the scale of an adapter goes into its B.

    Args:
        parts: (objective, a model with one adapter); they are read one after the other.
        base: loads the model with these adapters.

    Raises:
        ValueError: one has no single adapter, or the models differ; or the palette is impossible (see Adapters).
    """
    kept: dict[str, tuple[dict[str, Tensor], Adapters]] = {}
    first: tuple[str, dict[str, Any]] | None = None
    for name, policy in parts:
        weights = policy.weights
        if not isinstance(weights, LoRA) or weights.palette:
            what = "is a palette itself" if weights.palette else "has no LoRA adapter, since all weights were trained"
            raise ValueError(f"{policy.name} {what}: a soup is made of runs with --lora-rank, one per reward")
        about = {key: value for key, value in policy.identity.items() if key not in OWN}
        first = first or (policy.name, about)
        if other := [key for key in about if about[key] != first[1].get(key)]:
            raise ValueError(
                f"{policy.name} was trained on another model than {first[0]} (different {', '.join(other)}): a soup "
                "mixes adapters of one model"
            )
        kept[name] = (
            {key: own.detach().cpu().clone() for key, own in weights.tensors("policy").items()},
            weights.adapters,
        )
    every = [adapters for _, adapters in kept.values()]
    rank = max((own.rank or 0 for own in every), default=0)
    layers = tuple(dict.fromkeys(layer for own in every for layer in own.targets or ()))
    made = base(Adapters(rank, float(rank), layers or None, palette=tuple(kept)))
    whole = made.weights.tensors("policy")
    for tensor in whole.values():
        tensor.zero_()
    for number, (tensors, own) in enumerate(kept.values()):
        scale = (own.alpha or 0) / (own.rank or 1)
        for key, tensor in tensors.items():
            low, at = ".lora_A" in key, number * rank
            size = tensor.shape[0 if low else 1]
            whole[key].narrow(0 if low else 1, at, size).copy_(tensor if low else scale * tensor)
    return made
