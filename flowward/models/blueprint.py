"""A diffusers model without its weights, built from its configuration, to estimate its memory.

Weights are fake tensors (torch's FakeTensorMode): they have a shape, dtype and device, but no values. Results computed
from them are fake too. The rest is real: the same code runs as in training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from accelerate import init_empty_weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional
from torch.utils._pytree import tree_map_only

from ..process.policy import Condition
from ..prompts import Prompt
from ..system.precision import Precision, Wish, resolve
from . import hub
from .adapters import Adapters
from .diffusers import DiffusersPolicy, in_float32
from .families import FAMILIES, Family
from .imagined import FAKE, MOST, Alike, sharded
from .layout import Layout
from .loading import Loading
from .lora import LoRA
from .pipelines import index, prepared, shaped

BLOCK = 64  # 4-bit weights per scale in bitsandbytes


class Blueprint(DiffusersPolicy):
    """A policy of fake tensors: its velocities, images and gradients have no values.

    Args:
        processes: among which its transformers are sharded (1: they are whole).
        offload_copies: `reference` and `ema` lie in the memory of the host, if they are networks of their own.
    """

    def __init__(
        self,
        name: str,
        family: Family,
        adapters: Adapters | int | None,
        precision: Precision,
        processes: int = 1,
        offload_copies: bool = False,
    ):
        another = sharded(family.network, family.transformers, processes, _filled) if processes > 1 else None
        super().__init__(name, family, adapters, precision)
        if another and adapters is None:
            self.weights = Alike(family.network, another, ("reference", "ema") if offload_copies else ())
        self.weights.collective = another is not None

    def offloaded(self) -> list[Tensor]:
        """The tensors that lie in the memory of the host."""
        return self.weights.offloaded() if isinstance(self.weights, Alike) else []

    def _fingerprint(self, network: nn.Module) -> str:
        return "no weights"

    def prepare(self, prompts: Sequence[Prompt], folder: Path | None = None) -> None:
        """Encode these prompts, then free the text encoders, so that they are not counted."""
        every = [*prompts, *self._without_text(prompts)]
        self._read = {prompt: in_float32(self.family.encode([prompt])) for prompt in every}
        self._nothing = {} if self.family.reads_sources else in_float32(self.family.empty())
        self._let_go()

    def _rows(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return reduce(Condition.cat, [Condition(self._read[prompt]) for prompt in prompts]).tensors

    def empty(self) -> Condition:
        return Condition(self._nothing)


def load(
    name_or_path: str,
    adapters: Adapters | int | None,
    precision: Wish,
    loading: Loading,
    layout: Layout | None = None,
    processes: int = 1,
) -> Blueprint:
    """Like `models.pipelines.load` on a CUDA device, but reads only configurations and tokenizers.

    Args:
        layout: how the processes share the model.
        processes: those of the run, or with `node` those of one machine.

    Raises:
        ValueError: it cannot be found or read, its family is unknown, or it cannot be sharded so.
    """
    layout = layout or Layout()
    _refuse(loading, layout, processes)
    hub.quiet()
    chosen = resolve(precision, "cuda")
    stored = torch.bfloat16 if chosen == "bf16" else torch.float32
    found = index(name_or_path, loading.revision)
    if (kind := found["_class_name"]) not in FAMILIES:
        raise ValueError(
            f"{kind} has no written family, so its memory cannot be counted without its weights: start the run with "
            "--memory auto instead"
        )
    pipeline = getattr(diffusers, kind)
    parts_of, _ = pipeline._get_signature_keys(pipeline)  # a part that it makes itself has no files
    with hub.explained(name_or_path), init_empty_weights():
        parts = {
            key: _component(name_or_path, key, value, loading.revision)
            for key, value in (found | dict.fromkeys(FAMILIES[kind].unused)).items()
            if not key.startswith("_") and (not _names_a_class(value) or key in parts_of)
        }
    pipe = pipeline(**parts)
    for key, part in pipe.components.items():
        if isinstance(part, nn.Module):
            trained = key.startswith("transformer")
            if trained and loading.quantise:
                _pack(part, PACKED[loading.quantise])
            _without_numbers(part, torch.float32 if trained and adapters is None else stored)
            if key.startswith(("text_encoder", "image_encoder")):  # lengths are computed from their values
                part.register_forward_hook(_zeros)
    family: Family = shaped(pipe, loading)
    prepared(family, replace(loading, compile_blocks="never"), Layout())
    shards = processes if layout.shard != "none" else 1
    made = Blueprint(name_or_path, family, adapters, chosen, shards, layout.offload_copies)
    if isinstance(made.weights, LoRA):
        made.weights.merge = loading.merge_lora == "always"  # `auto` merges only where there is room
    return made


def _refuse(loading: Loading, layout: Layout, processes: int) -> None:
    """Raise ValueError if weights cannot be shared so."""
    if layout.shard == "none":
        if layout.offload_copies:
            raise ValueError("--offload-copies is counted only with --shard node or all: give both")
        return
    if not 2 <= processes <= MOST:
        raise ValueError(
            f"--shard {layout.shard} splits the weights among processes: give --processes N, from 2 to {MOST:,}"
        )
    for option, given in (("quantise", loading.quantise), ("merge-lora", loading.merge_lora == "always")):
        if given:
            raise ValueError(f"--{option} works only with whole weights: leave it out, or --shard {layout.shard}")


def _names_a_class(value: Any) -> bool:
    """Whether an entry of the index names a library and a class; other entries are settings, lists too."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str | None) for each in value)


def _component(where: str, key: str, value: Any, revision: str | None) -> Any:
    """A component of a pipeline, from its entry in the index; networks get no weights. Other entries are settings."""
    if not _names_a_class(value):
        return value
    if value[0] is None:
        return None
    library, name = value
    home = {"diffusers": diffusers, "transformers": transformers}.get(library)
    kind = getattr(home or getattr(diffusers.pipelines, library), name)  # a pipeline may have classes of its own
    if library != "transformers" and issubclass(kind, diffusers.ModelMixin):
        return kind.from_config(kind.load_config(where, subfolder=key, revision=revision))
    if library == "transformers" and issubclass(kind, transformers.PreTrainedModel):
        return kind(transformers.AutoConfig.from_pretrained(where, subfolder=key, revision=revision))
    return kind.from_pretrained(where, subfolder=key, revision=revision)


def _without_numbers(network: nn.Module, dtype: torch.dtype) -> None:
    """Replace parameters on the meta device by fake ones; floating-point ones get this dtype.

    Those that diffusers loads in float32 whatever it is told stay so.
    """
    exact = set((isinstance(network, diffusers.ModelMixin) and network._keep_in_fp32_modules) or ())
    for place, module in network.named_modules():
        for name, held in module._parameters.items():
            if held is not None:
                kept = held.dtype if exact & {*place.split("."), name} else dtype
                with FAKE:
                    fake = torch.empty(held.shape, dtype=kept if held.is_floating_point() else held.dtype)
                module._parameters[name] = nn.Parameter(fake, requires_grad=False)


def _filled(network: nn.Module) -> None:
    _without_numbers(network, torch.float32)


def _zeros(network: nn.Module, given: Any, found: Any) -> Any:
    return tree_map_only(FakeTensor, lambda fake: torch.zeros(fake.shape, dtype=fake.dtype), found)


class EightBits(nn.Linear):
    """An 8-bit layer like torchao's: one scale per row; weights become bf16 only for the product."""

    def __init__(self, plain: nn.Linear):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        self.weight = nn.Parameter(torch.empty(plain.weight.shape, dtype=torch.int8, device="meta"), False)
        self.scale = nn.Parameter(torch.empty(len(plain.weight), device="meta"), False)

    def forward(self, x: Tensor) -> Tensor:
        return _biased(self, functional.linear(x, self.weight.to(x.dtype)) * self.scale.to(x.dtype))


class FourBits(nn.Linear):
    """A 4-bit layer like that of bitsandbytes: two weights per byte, a scale per block; backward unpacks again."""

    def __init__(self, plain: nn.Linear):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None, device="meta")
        many = plain.weight.numel()
        self.weight = nn.Parameter(torch.empty(many // 2, 1, dtype=torch.uint8, device="meta"), False)
        self.scale = nn.Parameter(torch.empty(many // BLOCK, device="meta"), False)

    def forward(self, x: Tensor) -> Tensor:
        return _biased(self, _Unpacked.apply(x, self.weight, (self.out_features, self.in_features)))


def _biased(layer: Any, y: Tensor) -> Tensor:
    return y if layer.bias is None else y + layer.bias


class _Unpacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packed: Tensor, shape: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(packed)
        ctx.shape = shape
        return functional.linear(x, _unpacked(packed, shape))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (packed,) = ctx.saved_tensors
        return gradient @ _unpacked(packed, ctx.shape), None, None


def _unpacked(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    return packed.new_empty(shape, dtype=torch.bfloat16)


PACKED: dict[str, Callable[[nn.Linear], nn.Module]] = {"int8": EightBits, "nf4": FourBits}


def _pack(network: nn.Module, kind: Callable[[nn.Linear], nn.Module]) -> None:
    for module in list(network.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, kind(child))
