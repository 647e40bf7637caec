"""peft's layers with LoRA adapters, and how they get into a network. The only module that imports peft.

peft loads transformers, which takes seconds; so lora.py imports this module only to make adapters.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners import lora
from peft.tuners.tuners_utils import check_target_module_exists
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from .mixture import Mixture
    from .working import Part

ADAPTER = "policy"  # peft's name for the adapter in its layers


class Adapted(lora.Linear):
    """y = W x + scale B A x: peft's layer without the features that these adapters do not use.

    At every call peft casts the input to the adapter's dtype and checks for dropout, variants and merged weights. That
    takes as long as the matrix products. Under autocast the products choose their dtype anyway; in a network of half
    precision they get `working` copies (working.py).
    """

    working: Part | None = None  # scale A and B in the precision of the layer

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        base: Any = self.base_layer  # peft takes the size of its part, if its weights are split among processes
        self.in_features, self.out_features = base.in_features, base.out_features
        super().update_layer(*args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        base: Any = self.base_layer
        if self.disable_adapters:
            unchanged: Tensor = base(x, *args, **kwargs)
            return unchanged
        (name,) = self.active_adapters
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        if self._cheaper_as_a_sum(len(a.weight)) and not torch.is_autocast_enabled(x.device.type):
            whole = torch.addmm(base.weight, b.weight, a.weight, alpha=self.scaling[name])
            return functional.linear(x, whole, base.bias)
        return _added(base(x, *args, **kwargs), *self._low(x, name))

    def _low(self, x: Tensor, name: str) -> tuple[Tensor, Tensor, float]:
        """A x, B, and the scale of their product."""
        if self.working:
            common, place, working = self.working
            return common.low(x, place), working, 1.0
        a: Any = self.lora_A[name]
        b: Any = self.lora_B[name]
        return functional.linear(x, a.weight), b.weight, self.scaling[name]

    def whole(self, a: Tensor, b: Tensor) -> Tensor:
        """W + scale B A, added in float32 and rounded once to the precision of W."""
        base: Any = self.base_layer
        (name,) = self.active_adapters
        total: Tensor = torch.addmm(base.weight.float(), b, a, alpha=self.scaling[name]).to(base.weight.dtype)
        return total

    def _cheaper_as_a_sum(self, rank: int) -> bool:
        """Whether (W + scale B A) x costs less, if there are many more tokens than `rank`. Its gradient needs
        2 in out operations per token, the adapter forward and backward 6 rank (in + out). In half precision the sum
        would lose small adapters.
        """
        base: Any = self.base_layer
        plain = type(base.weight) is nn.Parameter and base.weight.dtype == torch.float32
        return plain and 3 * rank * sum(base.weight.shape) > base.weight.numel()


class Palette(Adapted):
    """y = W x + scale B (m * (A x)): several adapters as one, whose rank axis is scaled in every row of x."""

    mixture: Mixture  # one for all layers of a network

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            return super().forward(x, *args, **kwargs)
        base: Any = self.base_layer
        (name,) = self.active_adapters
        low, b, scale = self._low(x, name)
        rank = low.shape[-1]
        mixed = low * self.mixture.of(len(x), rank, x.device).view(-1, *[1] * (x.ndim - 2), rank).to(low.dtype)
        return _added(base(x, *args, **kwargs), mixed, b, scale)


def _added(y: Tensor, low: Tensor, b: Tensor, scale: float) -> Tensor:
    """y [..., out] + scale B low, low [..., r]; with scale 1 the product adds to y itself, in one kernel."""
    if scale != 1:
        return torch.add(y, functional.linear(low, b), alpha=scale)
    return torch.addmm(y.flatten(0, -2), low.flatten(0, -2), b.t()).view_as(y)


def adapt(
    network: Any,
    rank: int,
    alpha: float,
    targets: Sequence[str],
    layers: Sequence[str],
    mixture: Mixture | None = None,
) -> LoraConfig:
    """Put an adapter on these linear layers, with random weights from torch's global generator.

    With a `mixture`, the adapter is a palette: `rank` and `alpha` are those of all its adapters together.

    `targets` are the names that mean these layers, for the config. peft gets whole names where it would find more
    layers, such as convolutions.
    """
    config = LoraConfig(
        r=rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # type: ignore[arg-type]
        init_lora_weights="gaussian",
        target_modules=list(targets),
    )
    if [name for name, _ in network.named_modules() if check_target_module_exists(config, name)] != [*layers]:
        config.target_modules = "|".join(re.escape(name) for name in layers)
    config._register_custom_module({nn.Linear: Palette if mixture else Adapted})
    if hasattr(network, "add_adapter"):
        network.add_adapter(config, ADAPTER)
    else:  # any other torch module
        inject_adapter_in_model(config, network, ADAPTER)
    for layer in network.modules():
        if mixture and isinstance(layer, Palette):
            layer.mixture = mixture
    return config


def exported(network: Any) -> dict[str, Tensor]:
    """The adapter's tensors, under the names that diffusers and peft load."""
    return get_peft_model_state_dict(network, adapter_name=ADAPTER, save_embedding_layers=False)


def merged(network: Any, folder: str) -> Any:
    """The network with the adapter in a folder, as peft writes it, added to its weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names that peft uses
        made: Any = PeftModel.from_pretrained(network, folder)
        return made.merge_and_unload()
