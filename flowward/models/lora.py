"""Trained weights as LoRA adapters on one frozen network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional

from .weights import Weights

# both streams of a joint-attention block, the targets in all published SD3 and FLUX runs
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
ADAPTER = "policy"  # peft's name for the adapter in its layers


class Adapted(lora.Linear):
    """y = W x + scale B A x: peft's layer without the features that these adapters do not use.

    At every call peft casts the input to the adapter's dtype and checks for dropout, variants and merged weights. That
    takes as long as the matrix products. Under autocast the products choose their dtype anyway.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.base_layer
        if self.disable_adapters:
            unchanged: Tensor = base(x, *args, **kwargs)
            return unchanged
        (name,) = self.active_adapters
        a, b, scale = self._low_rank(name)
        if self._cheaper_as_a_sum(len(a)) and not torch.is_autocast_enabled(x.device.type):
            return functional.linear(x, torch.addmm(base.weight, b, a, alpha=scale), base.bias)
        return torch.add(base(x, *args, **kwargs), functional.linear(functional.linear(x, a), b), alpha=scale)

    def _low_rank(self, name: str) -> tuple[Tensor, Tensor, float]:
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return a.weight, b.weight, self.scaling[name]

    def _cheaper_as_a_sum(self, rank: int) -> bool:
        """Whether (W + scale B A) x costs less, if there are many more tokens than `rank`. Its gradient needs
        2 in out operations per token, the adapter forward and backward 6 rank (in + out). In half precision the sum
        would lose small adapters.
        """
        base: Any = self.base_layer
        plain = type(base.weight) is nn.Parameter and base.weight.dtype == torch.float32
        return plain and 3 * rank * sum(base.weight.shape) > base.weight.numel()


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
        self.kind = f"lora-{rank}"
        self._network = network.requires_grad_(False)
        self._held: str | None = None  # the weights that `still` fixed
        self.config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )
        self.config._register_custom_module({nn.Linear: Adapted})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same adapter in every process, for any earlier use of random numbers
            network.add_adapter(self.config, ADAPTER)
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
                for module in self._network.modules():
                    if isinstance(module, Adapted):
                        layer: Any = module.get_base_layer()
                        before.append((layer, layer.weight))
                        merged = layer.weight + module.get_delta_weight(ADAPTER)
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
        with self.network(name):
            return get_peft_model_state_dict(self._network, adapter_name=ADAPTER)
