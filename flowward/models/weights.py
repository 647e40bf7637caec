"""The weights that training needs, in two ways: LoRA adapters on one frozen network, or whole copies of it.

`policy` is trained; named copies (`old`, `ema`) follow it; `reference` is the network as it was loaded.
"""

from __future__ import annotations

import copy
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.tuners import lora
from torch import Tensor, nn
from torch.nn import functional

# both streams of a joint-attention block, the targets of every published SD3 and FLUX run
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")


class Weights(ABC):
    """`policy`, its named copies, and `reference`."""

    kind: str  # for checkpoints: weights of one kind cannot be read as another

    @abstractmethod
    def add(self, name: str) -> None:
        """Make the copy `name` of `policy` as it is now (and `reference`, before any training)."""

    @abstractmethod
    def network(self, name: str) -> AbstractContextManager[nn.Module]:
        """The network with the named weights active, for as long as the context lasts."""

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        """For as long as it lasts the named weights are the only ones used, do not change, and carry no gradient."""
        yield

    @abstractmethod
    def tensors(self, name: str) -> dict[str, Tensor]:
        """The live trainable tensors of `policy` or of a copy: the same keys, in the same order, for each."""

    @torch.no_grad()
    def follow(self, name: str, decay: float) -> None:
        """copy <- decay * copy + (1 - decay) * policy."""
        source = self.tensors("policy")
        for key, tensor in self.tensors(name).items():
            tensor.lerp_(source[key], 1 - decay)

    def same(self, name: str) -> bool:
        """Whether a copy is what the policy is now, bit by bit."""
        mine = self.tensors("policy")
        return all(torch.equal(tensor, mine[key]) for key, tensor in self.tensors(name).items())

    @torch.no_grad()
    def load(self, name: str, values: dict[str, Tensor]) -> None:
        """Overwrite `policy` or a copy.

        Raises:
            ValueError: the names or shapes are not those of this model.
        """
        mine = self.tensors(name)
        if {k: v.shape for k, v in mine.items()} != {k: v.shape for k, v in values.items()}:
            raise ValueError(f"these weights belong to another model: {_difference(mine, values)}")
        for key, tensor in mine.items():
            tensor.copy_(values[key])


def _difference(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> str:
    for key in sorted(mine.keys() | theirs.keys()):
        if key not in theirs:
            return f"'{key}' is missing"
        if key not in mine:
            return f"'{key}' is not part of this model"
        if mine[key].shape != theirs[key].shape:
            return f"'{key}' has shape {list(theirs[key].shape)}, here it is {list(mine[key].shape)}"
    return "they agree"


class Full(Weights):
    """All weights are trained; a copy is a second network."""

    kind = "full"

    def __init__(self, network: nn.Module):
        self._networks = {"policy": network.requires_grad_(True)}

    def add(self, name: str) -> None:
        self._networks[name] = copy.deepcopy(self._networks["policy"]).requires_grad_(False)

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        yield self._networks[name]

    def tensors(self, name: str) -> dict[str, Tensor]:
        return dict(self._networks[name].named_parameters())


class Adapted(lora.Linear):
    """y = W x + scale B A x: peft's layer without what these adapters never ask of it.

    peft copies the input to the adapter's precision and looks for dropout, variants and merged weights at every call:
    as much time as the products themselves. Under autocast the products choose their precision anyway.
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
        """Whether (W + scale B A) x takes less work, where many more tokens than `rank` pass: its gradient needs
        2 in out operations per token, the adapter forward and backward 6 rank (in + out). In half precision the sum
        would lose small adapters.
        """
        base: Any = self.base_layer
        plain = type(base.weight) is nn.Parameter and base.weight.dtype == torch.float32
        return plain and 3 * rank * sum(base.weight.shape) > base.weight.numel()


class LoRA(Weights):
    """Low-rank adapters on a frozen network (Hu et al., 2021, arXiv:2106.09685): peft's, one adapter per copy.

    `reference` is the network with its adapters off, so it costs no memory.

    With `merge` a rollout adds the adapters to the weights beneath them for as long as it lasts, which saves two small
    products per layer and step, and takes a copy of those layers. Not for weights in half precision: a small change
    would be rounded away.
    """

    merge = False

    def __init__(
        self, network: Any, rank: int, alpha: int | None = None, targets: tuple[str, ...] = ATTENTION, seed: int = 0
    ):
        if rank < 1:
            raise ValueError(f"the rank of a LoRA must be at least 1, not {rank}")
        self.kind = f"lora-{rank}"
        self._network = network.requires_grad_(False)
        self._held: str | None = None  # what `still` holds the network at
        self.config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank if alpha is None else alpha,
            init_lora_weights="gaussian",
            target_modules=list(targets),
        )
        self.config._register_custom_module({nn.Linear: Adapted})
        self._attach("policy", seed)

    def _attach(self, name: str, seed: int = 0) -> None:
        """In float32, whatever the network is stored in: in bf16 an optimiser's small steps would be rounded away."""
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # several adapters are the point
            torch.manual_seed(seed)  # the same adapter in every process, whatever was drawn before
            self._network.add_adapter(self.config, name)
        for tensor in self.tensors(name).values():
            tensor.data = tensor.data.float()

    def add(self, name: str) -> None:
        if name == "reference":
            return
        if name not in self._network.peft_config:
            self._attach(name)
        self._activate("policy")
        self.load(name, self.tensors("policy"))

    @contextmanager
    def still(self, name: str) -> Iterator[None]:
        """Switching takes peft milliseconds, as long as a small evaluation: here it is done once."""
        with self._merged(name) if self.merge and name != "reference" else self.network(name):
            self._held = name
            try:
                yield
            finally:
                self._held = None

    @contextmanager
    def _merged(self, name: str) -> Iterator[None]:
        before = []
        for module in self._network.modules():
            if isinstance(module, Adapted) and name in module.lora_A:
                layer: Any = module.get_base_layer()
                before.append((layer, layer.weight))
                layer.weight = nn.Parameter(layer.weight + module.get_delta_weight(name), requires_grad=False)
        self._network.disable_adapters()
        try:
            yield
        finally:  # the very tensors that were there: nothing is subtracted again
            for layer, weight in before:
                layer.weight = weight
            self._network.enable_adapters()
            self._activate("policy")

    def _activate(self, name: str) -> None:
        """peft freezes every adapter but the active one, so `policy` is active whenever a gradient may flow."""
        self._network.set_adapter(name)

    @contextmanager
    def network(self, name: str) -> Iterator[nn.Module]:
        if self._held not in (None, name):
            raise RuntimeError(f"the network is held at '{self._held}', and cannot be '{name}' now")
        if name in ("policy", self._held):
            yield self._network
            return
        try:
            if name == "reference":
                self._network.disable_adapters()
            else:
                self._activate(name)
            yield self._network
        finally:
            if name == "reference":
                self._network.enable_adapters()
            self._activate("policy")

    def tensors(self, name: str) -> dict[str, Tensor]:
        marker = f".{name}."
        return {
            key.replace(marker, "."): tensor
            for key, tensor in self._network.named_parameters()
            if ".lora_" in key and marker in key
        }

    def export(self, name: str) -> dict[str, Tensor]:
        """An adapter under the names that diffusers and peft load."""
        return get_peft_model_state_dict(self._network, adapter_name=name)
