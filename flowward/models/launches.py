"""How many kernels the passes of a model launch on a GPU: of the base model, in a rollout, and in training.

The blocks of a transformer can be counted as compiled ones too. Inductor lowers each kind of block for a processor,
and its fused kernels and products are counted in the code that it writes; a GPU gets nearly the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_iter, tree_map_only

from ..process.policy import Policy
from ..prompts import Prompt
from ..system import inductor
from ..system.launches import Launches
from . import sharding
from .lora import LoRA
from .working import Common

BASE, ROLLOUT, FORWARD, TRAINING = "base model", "rollout", "training, forward", "training, with backward"


@dataclass(frozen=True)
class Call:
    """What a block was called with."""

    block: torch.nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Calls of one kind launch the same kernels."""
        shapes = [(tuple(each.shape), each.requires_grad) for each in tree_iter((self.args, dict(self.kwargs))) if
                  isinstance(each, Tensor)]  # fmt: skip
        parts = [(name, type(part), getattr(part, "disable_adapters", None)) for name, part in
                 self.block.named_modules()]  # fmt: skip
        return type(self.block), tuple(shapes), tuple(parts)


def count(policy: Policy, prompt: Prompt, compiled: bool = False) -> dict[str, Mapping[str, int]]:
    """Kernels of one network evaluation by kind (see system/launches.py), for each pass.

    Args:
        prompt: any prompt that the policy can encode; it is `prepare`d.
        compiled: the blocks of the transformer are compiled.
    """
    x = torch.zeros(1, *policy.latent_shape, device=policy.device)
    t, condition = torch.full((1,), 0.5, device=policy.device), policy.encode([prompt])

    def evaluated(weights: str = "policy") -> Tensor:
        return policy.velocity(x, t, condition, weights)

    passes: dict[str, tuple[str | None, Callable[[], Any]]] = {
        ROLLOUT: ("policy", evaluated),
        FORWARD: (None, evaluated),
        TRAINING: (None, lambda: evaluated().sum().backward()),
    }
    if isinstance(policy.weights, LoRA):  # there the network without adapters costs no memory
        passes = {BASE: ("reference", lambda: evaluated("reference")), **passes}
    found = {}
    for name, (still, work) in passes.items():
        with policy.weights.still(still) if still else nullcontext(), torch.set_grad_enabled(still is None):
            found[name] = _counted(policy, work, compiled, name == TRAINING)
    for tensor in policy.weights.tensors("policy").values():
        tensor.grad = None
    return found


def _counted(policy: Policy, work: Callable[[], Any], compiled: bool, backward: bool) -> Mapping[str, int]:
    calls: list[Call] = []
    with _watched(policy, calls) if compiled else nullcontext(), Launches() as counted:
        work()
    kinds = dict(counted.kinds)
    known: dict[tuple[Any, ...], tuple[Mapping[str, int], Mapping[str, int]]] = {}
    for call in calls:
        if call.kind not in known:
            known[call.kind] = _compared(call, backward)
        for sign, own in zip((-1, 1), known[call.kind], strict=True):
            for kind, many in own.items():
                kinds[kind] = kinds.get(kind, 0) + sign * many
    return {kind: many for kind, many in kinds.items() if many}


@contextmanager
def _watched(policy: Any, calls: list[Call]) -> Iterator[None]:
    """While the context lasts, what the blocks are called with is added to `calls`."""

    def before(block: torch.nn.Module, args: Any, kwargs: Any) -> None:
        calls.append(Call(block, args, dict(kwargs)))

    networks = policy.family.transformers.values()
    hooks = [
        block.register_forward_pre_hook(before, with_kwargs=True)
        for network in networks
        for block in sharding.blocks(network)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _leaf(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor).requires_grad_(tensor.requires_grad)


def _real(tensor: Tensor) -> Tensor:
    """Like a tensor that may be a fake one, but real, to be compiled with."""
    return torch.zeros(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)


def _run(call: Call, block: Callable[..., Any], backward: bool, leaf: Callable[[Tensor], Tensor]) -> None:
    args, kwargs = tree_map_only(Tensor, leaf, (call.args, dict(call.kwargs)))
    results = [each for each in tree_iter(block(*args, **kwargs)) if isinstance(each, Tensor)]
    if backward:
        known = [each for each in results if each.requires_grad]
        torch.autograd.backward(known, [torch.empty_like(each) for each in known])


def _compared(call: Call, backward: bool) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Kernels of one block: as it is, and compiled."""
    with torch.set_grad_enabled(backward):
        with _replaced(call.block, _leaf), Launches() as eager:
            _run(call, call.block, backward, _leaf)
        with _replaced(call.block, _real), inductor.counted() as (backend, compiled):
            _run(call, torch.compile(call.block.forward, backend=backend), backward, _real)
    return eager.kinds, compiled


@contextmanager
def _replaced(block: torch.nn.Module, leaf: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Until the context ends, a block has weights of its own, so that gradients go nowhere else."""
    kept = [(module, dict(module._parameters), getattr(module, "working", None)) for module in block.modules()]
    commons: dict[Common, Common] = {}
    try:
        for module, parameters, working in kept:
            for name, held in parameters.items():
                if held is not None:
                    module._parameters[name] = torch.nn.Parameter(leaf(held.detach()), held.requires_grad)
            if working:
                common, place, b = working
                if common not in commons:
                    commons[common] = Common(leaf(common.a), common.layers)
                module.working = (commons[common], place, leaf(b))  # type: ignore[assignment]
        yield
    finally:
        for module, parameters, working in kept:
            module._parameters.update(parameters)
            if working:
                module.working = working
