"""Trained weights as LoRA adapters on one frozen network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .weights import Weights

# both streams of a joint-attention block: the targets of the published SD3 runs, and of most for FLUX
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class LoRA(Weights):
    """Low-rank adapters on a frozen network (Hu et al., 2021, arXiv:2106.09685): peft's, which hold the policy.

    A copy is a set of tensors that replaces the policy's while it is used. The layers stay the same, so one compiled
    graph serves all copies. `reference` is the network with its adapters off, so it costs no memory.

    With `merge` a rollout adds the adapters to the base weights until it ends. This saves two small products per layer
    and step, and needs a copy of those layers. Do not use it with half-precision weights: small changes would be lost.
    """

    merge = False

    def __init__(
        self, network: Any, rank: int, alpha: int | None = None, targets: tuple[str, ...] = ATTENTION, seed: int = 0
    ):
        if rank < 1:
            raise ValueError(f"the LoRA rank must be at least 1, not {rank}")
        from .adapted import ADAPTER, Adapted, adapt  # peft loads transformers: only for those who train adapters

        self.kind = f"lora-{rank}"
        self._network = network.requires_grad_(False)
        self._held: str | None = None  # the weights that `still` fixed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same adapter in every process, for any earlier use of random numbers
            self.config = adapt(network, rank, 2 * rank if alpha is None else alpha, targets)
        self._layers = [module for module in network.modules() if isinstance(module, Adapted)]
        marker = f".{ADAPTER}."
        names = [name for name, _ in network.named_parameters() if ".lora_" in name and marker in name]
        self._places: dict[str, Any] = {
            name.replace(marker, "."): network.get_submodule(name.removesuffix(".weight")) for name in names
        }
        for place in self._places.values():
            place.float()  # for any dtype of the network: bf16 would lose small optimiser steps
        self._tensors = {"policy": {key: place.weight for key, place in self._places.items()}}

    def add(self, name: str) -> None:
        if name == "reference":
            return
        # They require gradients but never get any: torch chooses kernels and compiles graphs by this flag.
        mine = self._tensors["policy"]
        self._tensors[name] = {key: nn.Parameter(tensor.detach().clone()) for key, tensor in mine.items()}

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        with self._merged(name) if self.merge and name != "reference" else self.network(name):
            self._held = name
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def _merged(self, name: str) -> Iterator[None]:
        before = []
        try:
            with self._in_place(self._tensors[name]):
                for adapted in self._layers:
                    layer: Any = adapted.get_base_layer()
                    before.append((layer, layer.weight))
                    merged = layer.weight + adapted.get_delta_weight(adapted.active_adapters[0])
                    layer.weight = nn.Parameter(merged, requires_grad=False)
            with self._without_adapters():
                yield
        finally:  # put back the original tensors, without subtracting
            for layer, weight in before:
                layer.weight = weight

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        self._network.disable_adapters()
        try:
            yield
        finally:
            self._network.enable_adapters()

    @contextmanager
    def _in_place(self, tensors: Mapping[str, nn.Parameter]) -> Iterator[None]:
        try:
            self._put(tensors)
            yield
        finally:
            self._put(self._tensors["policy"])

    def _put(self, tensors: Mapping[str, nn.Parameter]) -> None:
        for key, tensor in tensors.items():
            self._places[key].weight = tensor

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        if self._held not in (None, name):
            raise RuntimeError(f"the network is fixed to '{self._held}' during this rollout; '{name}' cannot be used")
        if name in ("policy", self._held):
            yield self._network
            return
        with self._without_adapters() if name == "reference" else self._in_place(self._tensors[name]):
            yield self._network

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(self._tensors[name])

    def export(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors, under the names that diffusers and peft load."""
        from .adapted import exported

        with self.network(name):
            return exported(self._network)
