"""Count the kernels that a computation launches on a GPU, without one: fake tensors are enough (models/blueprint.py).

A GPU waits if the processor cannot launch its small kernels fast enough. So their number says how fast a model can be,
whatever the GPU. Calls of ATen are counted that start a kernel, by the rules of CUDA's autocast, which keeps more in
float32 than that of processors does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

# functions that CUDA's autocast runs in bf16, and in float32 (ATen/autocast_mode.h)
_LOWER = """
_convolution conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution prelu addmm
addmv addr matmul __matmul__ __rmatmul__ einsum mm mv linalg_vecdot linear addbmm baddbmm bmm chain_matmul
linalg_multi_dot scaled_dot_product_attention
"""
_EXACT = """
acos asin cosh erfinv exp expm1 log log10 log2 log1p reciprocal rsqrt sinh tan pow __pow__ __rpow__ softplus layer_norm
native_layer_norm rms_norm group_norm frobenius_norm nuclear_norm cosine_similarity dist cdist renorm logsumexp prod
softmax log_softmax cumprod cumsum linalg_vector_norm linalg_matrix_norm sum norm
"""
LOWER, EXACT = frozenset(_LOWER.split()), frozenset(_EXACT.split())
FREE = ("empty", "new_empty", "detach", "alias", "_unsafe_view", "_reshape_alias", "lift_fresh", "sym_")
PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_int_mm", "addmv", "mv", "dot")
FOREACH = {1: 110, 2: 64, 3: 48, 4: 36}  # tensors in one launch, by the number of lists (MultiTensorApply.cuh)
CHUNK, BLOCKS = 65_536, 320  # numbers that a block of such a launch works on, and blocks in a launch


class Launches(TorchDispatchMode):
    """Inside, counts kernels by kind: `products`, `casts`, `norms`, `attention`, `other`."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        self.names: Counter[str] = Counter()
        self._rules = AsOnCuda(self)

    @property
    def total(self) -> int:
        return self.kinds.total()

    def __enter__(self) -> Launches:
        self._rules.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        super().__exit__(*raised)
        self._rules.__exit__(*raised)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace != "prim" and not func.is_view and not name.startswith(FREE):
            self.add(name, _many(name, args))
        return found

    def add(self, name: str, many: int = 1) -> None:
        self.names[name] += many
        self.kinds[_kind(name)] += many


def _kind(name: str) -> str:
    if name in PRODUCTS:
        return "products"
    if name in ("_to_copy", "_foreach_copy_"):
        return "casts"
    return "norms" if "norm" in name else "attention" if "attention" in name else "other"


def _many(name: str, args: Sequence[Any]) -> int:
    """Kernels of one call. One that works on lists of tensors takes some dozens of them at once."""
    if not name.startswith("_foreach_"):
        return 1
    lists = [each for each in args if isinstance(each, (list, tuple)) and each and isinstance(each[0], Tensor)]
    depth = len(lists) + (not name.endswith("_"))  # and the list of results
    blocks = sum(ceil(tensor.numel() / CHUNK) for tensor in lists[0])
    return max(ceil(len(lists[0]) / FOREACH[min(depth, 4)]), ceil(blocks / BLOCKS))


class AsOnCuda(TorchFunctionMode):
    """Functions cast their arguments as CUDA's autocast does, and those with a kernel of their own there have one."""

    def __init__(self, launches: Launches):
        super().__init__()
        self._launches = launches
        self._cast: dict[tuple[int, torch.dtype], Tensor] = {}  # of weights, as autocast keeps them

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given, name = dict(kwargs or {}), getattr(func, "__name__", "")
        if torch.is_autocast_enabled("cpu") and name in LOWER | EXACT:
            dtype = torch.get_autocast_dtype("cpu") if name in LOWER else torch.float32
            args, given = tree_map_only(Tensor, lambda each: self._in(dtype, each), (tuple(args), given))
            with torch.autocast("cpu", enabled=False):
                return self._called(func, name, args, given)
        return self._called(func, name, args, given)

    def _called(self, func: Any, name: str, args: Any, given: dict[str, Any]) -> Any:
        if name == "rms_norm":  # processors compose it of seven functions
            return _OneKernel.apply(self._launches, args[0])
        return func(*args, **given)

    def _in(self, dtype: torch.dtype, tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == dtype:
            return tensor
        if not (tensor.is_leaf and tensor.requires_grad and torch.is_autocast_cache_enabled()):
            return tensor.to(dtype)
        key = id(tensor), dtype
        if key not in self._cast:
            self._cast[key] = tensor.to(dtype)
        return self._cast[key]


class _OneKernel(torch.autograd.Function):
    """A norm without values: one kernel forward, one backward if its weights are frozen."""

    @staticmethod
    def forward(ctx: Any, launches: Launches, x: Tensor) -> Tensor:
        ctx.launches = launches
        launches.add("rms_norm")
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        ctx.launches.add("rms_norm_backward")
        return None, torch.empty_like(gradient)
