"""Online reinforcement-learning post-training of flow-matching generative models.

The public names are imported on first use, so that `flowward --help` does not wait for torch.
"""

from __future__ import annotations

import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import prompts, rewards
    from .algorithms import ALGORITHMS, objectives
    from .export import trained
    from .learning import credit
    from .models import load
    from .models import modules as policies
    from .process import flow
    from .session.fit import fit
    from .training.assembly import train
    from .training.run import Run

__version__ = "0.1.0"

# CPU threads of torch spin while they wait for each other: 300,000 rounds by default (libgomp). On a quiet machine that
# is fast. If another program uses a core, one thread spins in the time that the other one needs, and an iteration took
# 20 times as long. With 3,000 rounds it takes 4 times as long then, and is as fast as before on a quiet machine
# (docs/notes/openmp.md). The results are the same. libgomp reads this when torch is imported, so later is too late.
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")

_HOME = {
    "ALGORITHMS": "algorithms",
    "Run": "training.run",
    "fit": "session.fit",
    "load": "models",
    "train": "training.assembly",
}
_MODULES = {
    "credit": "learning.credit",
    "flow": "process.flow",
    "objectives": "algorithms.objectives",
    "policies": "models.modules",
    "prompts": "prompts",
    "rewards": "rewards",
    "trained": "export.trained",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name in _MODULES:
        return import_module(f".{_MODULES[name]}", __name__)
    raise AttributeError(f"module 'flowward' has no attribute '{name}'")


def __dir__() -> list[str]:
    """What may be imported, for completion in notebooks: most of it is not there before its first use."""
    return sorted({*globals(), *__all__})


__all__ = [
    "ALGORITHMS",
    "Run",
    "credit",
    "fit",
    "flow",
    "load",
    "objectives",
    "policies",
    "prompts",
    "rewards",
    "train",
    "trained",
]
