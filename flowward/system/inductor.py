"""The kernels of a compiled function, counted in the code that torch's Inductor writes. That code is not run."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any
from unittest import mock

import torch

FUSED = re.compile(r"^\s*\w*fused\w*(?:\(|\.run\()", re.MULTILINE)
PRODUCT = re.compile(r"^\s*(?:\w+ = )?(?:extern_kernels\.|torch\.ops\.mkl\w*\.)\w+", re.MULTILINE)
OTHER = re.compile(r"^\s*(?:\w+ = )?torch\.ops\.aten\.(\w+)", re.MULTILINE)
FREE = ("empty", "view", "reshape", "as_strided", "permute", "expand")


@contextmanager
def counted() -> Iterator[tuple[Callable[..., Any], Counter[str]]]:
    """A backend for torch.compile that counts what it is asked for, and computes nothing; and the counts.

    The counts, of all graphs forward and backward: `products`, `attention`, `other` functions, and `fused` kernels.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition
    from torch._inductor.decomposition import select_decomp_table

    found: Counter[str] = Counter()

    def lowered(graph: Any, given: Sequence[Any]) -> Callable[..., Any]:
        found.update(_of(graph, given))

        (results,) = next(node for node in graph.graph.nodes if node.op == "output").args

        def run(values: list[Any]) -> list[Any]:
            values.clear()
            return [_like(each) for each in results]

        run._boxed_call = True  # type: ignore[attr-defined]  # so does AOTAutograd know that it takes a list
        return run

    torch._dynamo.reset()
    yield (
        aot_autograd(
            fw_compiler=lowered,
            bw_compiler=lowered,
            partition_fn=min_cut_rematerialization_partition,
            decompositions=select_decomp_table(),
        ),
        found,
    )


def _like(node: Any) -> Any:
    """A value of the shape that a node of a graph has, without numbers."""
    value = getattr(node, "meta", {}).get("val", node)
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


class _Enough(Exception):
    """The code is written; it need not be built."""


def _of(graph: Any, given: Sequence[Any]) -> Counter[str]:
    """What Inductor makes of one graph."""
    from torch._inductor import compile_fx, config
    from torch._inductor.graph import GraphLowering

    written: list[str] = []

    def keep(lowering: Any) -> Any:
        code, *_ = lowering.codegen()
        written.append(code.value if hasattr(code, "value") else code)
        raise _Enough

    with (
        mock.patch.object(GraphLowering, "compile_to_module", keep),
        config.patch(fx_graph_cache=False),
        suppress(Exception),  # Inductor wraps what is raised inside
    ):
        compile_fx.compile_fx_inner(graph, list(given))
    if not written:
        raise RuntimeError("torch's compiler cannot lower a block of this model")
    called = written[-1].partition("def call(")[2]
    others = [name for name in OTHER.findall(called) if not name.startswith(FREE)]
    return Counter(
        fused=len(FUSED.findall(called)),
        products=len(PRODUCT.findall(called)),
        attention=sum("attention" in name for name in others),
        other=sum("attention" not in name for name in others),
    )
