"""Trained weights as LoRA adapters on one frozen network."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..system import memory
from ..system.distributed import part
from ..system.terminal import tell
from . import targets
from .adapters import Adapters
from .mixture import Mixture
from .weights import WHOLE, Full, Placement, Weights
from .working import working

if TYPE_CHECKING:
    from .lora_files import Start

ROOM = 2  # copies of the adapted layers for which there must be memory, before one is made
# both streams of a joint-attention block, as published runs have them (Flow-GRPO adds feed-forward layers on FLUX)
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class LoRA(Weights):
    """Low-rank adapters on a frozen network (Hu et al., 2021, arXiv:2106.09685): peft's, which hold the policy.

    A copy is a set of tensors that replaces the policy's while it is used. The layers stay the same, so one compiled
    graph serves all copies. `reference` is the network with its adapters off, so it costs no memory; with
    `own_reference` it is a copy, made when training starts.

    The tensors are float32. A network in half precision (`half`) gets rounded ones for each pass, all at once
    (working.py), and runs without autocast, as its own pipeline runs it.

    With `merge` a rollout adds the adapters to the base weights until it ends, in float32, rounded once. This saves two
    small products per layer and step, and needs a copy of those layers.

    A palette of K adapters is one adapter of K times the rank, whose rank axis is scaled in every row (`mixture`). So
    copies, optimisers and checkpoints are those of one adapter.
    """

    merge = False
    start: Start | None = None  # the LoRA that training started from
    read: Callable[[str], Start]  # a LoRA file or folder for these layers; raises ValueError if it does not fit

    def __init__(self, network: Any, adapters: Adapters, usual: tuple[str, ...] = ATTENTION, seed: int = 0):
        from .adapted import ADAPTER, Adapted, adapt  # peft loads transformers: only for those who train adapters

        assert adapters.rank is not None  # `trainable` has read the file
        if adapters.targets:
            targets.refuse_unknown(network, adapters.targets)
        rank, alpha = adapters.rank, 2.0 * adapters.rank if adapters.alpha is None else adapters.alpha
        self.kind = f"lora-{rank}" if alpha == 2 * rank else f"lora-{rank}-alpha-{alpha:g}"
        self.palette, many = adapters.palette, max(1, len(adapters.palette))
        if self.palette:
            self.kind, self.mixture = f"{self.kind}-palette-{'+'.join(self.palette)}", Mixture(many)
        self.own_reference = adapters.reference == "init"
        self._network = network.requires_grad_(False)
        self._held: str | None = None  # the weights that `still` fixed
        self._kept: list[nn.Parameter] = []  # merged weights, if they `stay`
        layers = targets.chosen(network, adapters.targets or usual)
        self.chosen = adapters.targets  # by the caller
        self._as_usual = layers == targets.chosen(network, usual)
        self.adapters = replace(adapters, alpha=alpha, targets=targets.named(network, layers))
        self.scale = alpha / rank
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # the same adapter in every process, for any earlier use of random numbers
            self.config = adapt(network, many * rank, many * alpha, adapters.targets or usual, layers, self.mixture)
        adapted = {name: module for name, module in network.named_modules() if isinstance(module, Adapted)}
        self._layers, self._groups = list(adapted.values()), targets.together(network, adapted)
        marker = f".{ADAPTER}."
        names = [name for name, _ in network.named_parameters() if ".lora_" in name and marker in name]
        self._places: dict[str, Any] = {
            name.replace(marker, "."): network.get_submodule(name.removesuffix(".weight")) for name in names
        }
        for place in self._places.values():
            place.float()  # for any dtype of the network: bf16 would lose small optimiser steps
        self._tensors = {"policy": {key: place.weight for key, place in self._places.items()}}
        self.half = _half([layer.get_base_layer() for layer in self._layers])
        for key, tensor in self._tensors["policy"].items():
            if many > 1 and ".lora_A" in key:  # as adapters of this rank begin: peft's A shrinks as the rank grows
                tensor.data.mul_(many)

    def identity(self) -> dict[str, Any]:
        layers = {} if self._as_usual else {"layers": list(self.adapters.targets or ())}
        return {**super().identity(), **layers}

    def meet(self, rows: Mapping[str, Tensor]) -> None:
        if self.mixture:
            self.mixture.meet(rows)

    @torch.no_grad()
    def begin(self, layers: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        """Start from A [r, in] and B [out, r] of each layer. If r is below the rank, the other columns of B stay 0."""
        mine = self._tensors["policy"]
        for name, (a, b) in layers.items():
            mine[f"{name}.lora_A.weight"][: len(a)] = a
            mine[f"{name}.lora_B.weight"][:, : len(a)] = b

    def padded(self, layers: Mapping[str, tuple[Tensor, Tensor]], scale: float) -> dict[str, Tensor]:
        """Another adapter, of a rank up to this one's, as tensors of these adapters; the network computes the same.

        Args:
            layers: A [r, in] and B [out, r] of each layer; other layers are not changed.
            scale: that multiplies B A, its alpha / rank.

        Raises:
            ValueError: the rank is larger, or these adapters lack a layer.
        """
        mine, rank = self._tensors["policy"], self.adapters.rank or 0
        found = {key: torch.zeros_like(tensor, requires_grad=False) for key, tensor in mine.items()}
        own = (self.adapters.alpha or 2.0 * rank) / rank
        for name, (a, b) in layers.items():
            if f"{name}.lora_A.weight" not in found:
                raise ValueError(f"it has an adapter on '{name}', and the trained model has none there: --lora-targets")
            if len(a) > rank:
                raise ValueError(f"its rank is {len(a)}, and that of the trained model {rank}: --lora-rank {len(a)}")
            found[f"{name}.lora_A.weight"][: len(a)] = a
            found[f"{name}.lora_B.weight"][:, : len(a)] = b * (scale / own)
        return found

    def add(self, name: str) -> None:
        if self._is_base(name):
            return
        # They require gradients but never get any: torch chooses kernels and compiles graphs by this flag.
        mine = self._tensors["policy"]
        self._tensors[name] = {key: nn.Parameter(tensor.detach().clone()) for key, tensor in mine.items()}

    def _is_base(self, name: str) -> bool:
        """Whether these weights are the network without adapters."""
        return name == "reference" and not self.own_reference

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        with self._active(name, False) if self._is_base(name) or not self._merges() else self._merged(name):
            self._held = name
            try:
                yield
            finally:
                self._held = None

    def _merges(self) -> bool:
        """Whether to merge: if there is room for a copy of the layers, and as much again for the passes."""
        bases: list[Any] = [layer.get_base_layer() for layer in self._layers]
        if self.merge and not self._kept and (free := memory.room(bases[0].weight.device)) is not None:
            self._merge_if(free > ROOM * sum(each.weight.nbytes for each in bases))
        return self.merge

    def _merge_if(self, able: bool) -> None:
        if not able:
            self.merge, self.stay = False, self.stay and self.half is None
            self._kept.clear()
            tell("too little memory to merge the adapters into a copy of their layers: rollouts are a little slower")

    @contextmanager
    def _merged(self, name: str) -> Iterator[None]:
        before, whole = [], True
        try:
            for number, (layer, (a, b)) in enumerate(zip(self._layers, self._pairs(name), strict=True)):
                base: Any = layer.get_base_layer()
                before.append((base, base.weight))
                base.weight = self._placed(number, layer.whole(a, b))
        except torch.OutOfMemoryError:
            _put_back(before)
            whole = False
            self._merge_if(False)
        try:
            with self._without_adapters() if whole else self._active(name, False):
                yield
        finally:
            _put_back(before)

    def _placed(self, number: int, merged: Tensor) -> nn.Parameter:
        """The merged weights of a layer as a parameter: always the same one, if weights `stay`."""
        if number < len(self._kept):
            self._kept[number].copy_(merged.detach())
            return self._kept[number]
        made = nn.Parameter(merged, requires_grad=False)
        self._kept += [made] if self.stay else []
        return made

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        for layer in self._layers:
            layer.enable_adapters(False)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.enable_adapters(True)

    @contextmanager
    def _active(self, name: str, gradients: bool) -> Iterator[None]:
        """Until the context ends, the layers use these weights; `gradients` flow to those of the policy."""
        if self._is_base(name):
            with self._without_adapters():
                yield
            return
        try:
            if name != "policy":
                self._put(self._tensors[name])
            with self._rounded(name, gradients and name == "policy"):
                yield
        finally:
            if name != "policy":
                self._put(self._tensors["policy"])

    @contextmanager
    def _rounded(self, name: str, gradients: bool) -> Iterator[None]:
        """Until the context ends, layers of half precision use these weights as they are now."""
        if self.half is None:
            yield
            return
        before = [layer.working for layer in self._layers]
        rounded = working(list(self._tensors[name].values()), self.half, self.scale, gradients, self._groups)
        for layer, own in zip(self._layers, rounded, strict=True):
            layer.working = own
        try:
            yield
        finally:
            for common, *_ in rounded:
                common.forget()  # after a pass that failed
            if not gradients:  # with them they stay: the backward pass may run a part of the network again
                for layer, kept in zip(self._layers, before, strict=True):
                    layer.working = kept

    def _put(self, tensors: Mapping[str, nn.Parameter]) -> None:
        for key, tensor in tensors.items():
            self._places[key].weight = tensor

    def _pairs(self, name: str) -> Iterator[tuple[Tensor, Tensor]]:
        """A and B of each layer."""
        tensors = iter(self._tensors[name].values())
        return zip(tensors, tensors, strict=True)

    def networks(self) -> list[nn.Module]:
        return [self._network]

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        if self._held not in (None, name):
            raise RuntimeError(f"the network is fixed to '{self._held}' during this rollout; '{name}' cannot be used")
        with nullcontext() if self._held else self._active(name, torch.is_grad_enabled()):
            yield self._network

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(self._tensors[name])

    def export(self, name: str) -> dict[str, Tensor]:
        """The adapter's tensors, under the names that diffusers and peft load."""
        from .adapted import exported

        with self.network(name):
            return exported(self._network)

    def single(self) -> dict[str, Any]:
        """The entries of peft's description that differ for one adapter of a palette."""
        alpha = self.adapters.alpha or 0.0
        return {"r": self.adapters.rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}

    def parts(self, name: str) -> dict[str, dict[str, Tensor]]:
        """The tensors of each adapter of a palette by its objective, as `export` gives those of one adapter."""
        rank, whole = self.adapters.rank or 0, self.export(name)
        return {
            own: {
                key: tensor.narrow(0 if ".lora_A" in key else 1, number * rank, rank).contiguous()
                for key, tensor in whole.items()
            }
            for number, own in enumerate(self.palette)
        }


def _put_back(before: Sequence[tuple[Any, nn.Parameter]]) -> None:
    """The original tensors, so that nothing has to be subtracted again."""
    for layer, weight in before:
        layer.weight = weight


def _half(layers: Sequence[Any]) -> torch.dtype | None:
    """The half precision that these layers are in, if all of them are, and plain: quantised ones choose their own."""
    plain = all(type(each) is nn.Linear and not is_traceable_wrapper_subclass(part(each.weight)) for each in layers)
    kinds = {each.weight.dtype for each in layers}
    return kinds.pop() if plain and kinds in ({torch.bfloat16}, {torch.float16}) else None


def trainable(
    network: Any,
    adapters: Adapters | int | None,
    convert: Any = None,
    parts: Mapping[str, Any] | None = None,
    usual: tuple[str, ...] = ATTENTION,
    seed: int = 0,
    placement: Placement = WHOLE,
) -> tuple[Full | LoRA, tuple[str, ...]]:
    """The weights to train, and notes about them.

    Args:
        network: the network.
        adapters: which adapters to train; a number is their rank, None trains all weights.
        convert: gives the tensors of LoRA files in other layouts the names of diffusers.
        parts: the transformers in the network by name, if there are several.
        usual: the layers that get adapters if `adapters` does not choose.
        seed: for the initial values of A.
        placement: where the network's weights lie; adapters are whole in every process.

    Raises:
        ValueError: the LoRA to start from, or a chosen layer, does not fit the network.
    """
    if adapters is None:
        return placement.full(network), ()
    if isinstance(adapters, int):
        adapters = Adapters(adapters)
    if adapters.start is None:
        made, notes = LoRA(network, adapters, usual, seed), tuple[str, ...]()
    else:
        start = _read(parts or {"transformer": network}, network, convert, adapters.start)
        made, notes = LoRA(network, start.adapters(adapters.reference), usual, seed), start.notes
        made.begin(start.layers)
        made.start = replace(start, layers={})  # which are in `made` now
    made.collective = placement.collective
    made.read = partial(_read, parts or {"transformer": network}, network, convert)
    if made.own_reference:
        made.add("reference")
    return made, notes


def _read(parts: Mapping[str, Any], network: Any, convert: Any, name: str) -> Start:
    from . import lora_files  # and with it the hub, which few runs need

    return lora_files.read(name, parts, network, convert)
