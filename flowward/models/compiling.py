"""Blocks of a transformer compiled by torch, and passes without gradients that a GPU replays as CUDA graphs."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.utils._triton import has_triton

from ..process.policy import Weights
from ..system.terminal import tell
from . import sharding
from .adapters import Adapters
from .families import Family
from .layout import Layout
from .loading import Loading
from .weights import Full

COMPILER = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")  # the one that torch uses
MOST = 64  # compiled graphs that torch may keep per block
# the bits do not depend on the batch size that was compiled first: a run that goes on compiles in another order
EXACT = {"batch_invariant": True, "split_reductions": False}


def possible(loading: Loading, layout: Layout, family: Family, adapters: Adapters | int | None, half: bool) -> Loading:
    """The options, with blocks compiled as far as this machine and this model allow; what is left out is told once.

    Args:
        adapters: of the model; None if all weights are trained.
        half: its weights are in half precision.
    """
    device = next(family.network.parameters()).device
    if loading.compiles and (why := uncompilable(device)):
        tell(f"--compile-blocks: {why}. Until then the blocks run as they are, which is slower")
        return replace(loading, compile_blocks="never")
    if loading.compile_blocks != "graphs":
        return loading
    if why := unrecordable(loading, layout, family, adapters, half, device):
        tell(f"--compile-blocks graphs: {why}. The blocks are compiled and run without CUDA graphs")
        return replace(loading, compile_blocks="always")
    return loading


def uncompilable(device: torch.device) -> str | None:
    """Why torch cannot compile here; None if it can. Its compiler may be missing, or a folder's name has spaces."""
    if not shutil.which(COMPILER):
        return f"torch needs a C++ compiler, and {COMPILER} is missing: install it"
    if device.type == "cuda" and not has_triton():
        return "on a GPU torch compiles with Triton, which is missing or does not support this GPU; install triton"
    cache = os.environ.get("TORCHINDUCTOR_CACHE_DIR") or tempfile.gettempdir()
    for folder, variable in ((tempfile.gettempdir(), "TMPDIR"), (cache, "TORCHINDUCTOR_CACHE_DIR")):
        if any(letter.isspace() for letter in folder):  # torch does not quote names on its command lines
            return f"torch cannot compile in a folder whose name has spaces ({folder}); set {variable} to another one"
    return None


def unrecordable(
    loading: Loading,
    layout: Layout,
    family: Family,
    adapters: Adapters | int | None,
    half: bool,
    device: torch.device,
) -> str | None:
    """Why passes cannot be CUDA graphs; None if they can.

    A graph reads the same memory with the same shapes in every replay. So weights must stay where they are.
    """
    palette = isinstance(adapters, Adapters) and adapters.palette
    reasons = {
        "CUDA graphs need a CUDA device": device.type != "cuda",
        "weights or sequences that processes share are gathered anew in every pass": layout.shard != "none"
        or layout.context_parallel > 1,
        "--offload-copies moves weights between devices": layout.offload_copies,
        "quantised weights are unpacked anew in every pass": bool(loading.quantise),
        "text of this model is as long as the longest prompt, so shapes vary": family.masks_text,
        "two transformers share the rows of a pass, so batch sizes vary": len(family.transformers) > 1,
        "adapters in half precision need --merge-lora auto or always": adapters is not None
        and half
        and loading.merge_lora == "never",
        "a palette is not merged, so its adapters are rounded anew in every rollout": bool(palette) and half,
    }
    return next((why for why, true in reasons.items() if true), None)


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile each repeated block of a transformer, or of several, so that blocks of one kind share a graph.

    There is one graph per kind of block and set of adapters, with and without gradients. This is more than torch
    keeps by default.
    """
    torch._dynamo.config.recompile_limit = MOST
    for block in _blocks(network):
        block.compile(backend=backend, options=EXACT if backend == "inductor" else None)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """The repeated blocks of a transformer, or of the transformers that a network has as children."""
    own = list(sharding.blocks(network))
    return own or [block for transformer in network.children() for block in sharding.blocks(transformer)]


def compile_all(weights: Weights, blocks: Callable[[nn.Module], object] = compile_blocks) -> None:
    """Compile the blocks of all networks of these weights, and of copies that are made later."""
    for network in weights.networks():
        blocks(network)
    if isinstance(weights, Full):
        weights.again = blocks


def undo(weights: Weights) -> None:
    """Let the blocks run as they are again."""
    for network in weights.networks():
        for block in _blocks(network):
            block._compiled_call_impl = None
    if isinstance(weights, Full):
        weights.again = None


class Graphs:
    """Compiled blocks whose passes are CUDA graphs inside `replayed`, by torch's CUDA graph trees.

    A graph is recorded for each batch size. Outside `replayed`, and with gradients, blocks run compiled as usual: there
    batch sizes may vary.
    """

    def __init__(self) -> None:
        self.on = False

    def compile(self, network: nn.Module) -> None:
        """Compile the blocks of a network both ways."""
        compile_blocks(network)
        for block in _blocks(network):
            plain = block._compiled_call_impl
            recorded = torch.compile(block._call_impl, options={**EXACT, "triton.cudagraphs": True}, dynamic=False)
            block._compiled_call_impl = self._either(plain, recorded)
        network.register_forward_pre_hook(self._begin)

    def _either(self, plain: Any, recorded: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **kwargs: Any) -> Any:
            return (recorded if self._replays else plain)(*args, **kwargs)

        return called

    @property
    def _replays(self) -> bool:
        return self.on and not torch.is_grad_enabled()

    def _begin(self, network: nn.Module, given: Any) -> None:
        """Outputs of blocks live until the next pass begins; without this mark, until the next block runs."""
        if self._replays:
            torch.compiler.cudagraph_mark_step_begin()

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Inside, passes without gradients are CUDA graphs; use few batch sizes."""
        before, self.on = self.on, True
        try:
            yield
        finally:
            self.on = before
