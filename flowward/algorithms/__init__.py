"""The algorithms. Each combines four parts: rollout, credit (advantages), training points and one loss equation.

ALGORITHMS has the class of each by its name. Classes are imported on first use, so that `flowward algorithms` needs no
torch. An algorithm is one file of maths (here), one of settings (presets/NAME.yaml) and a line in each list below.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .advantageflow import AdvantageFlow
    from .awm import AWM
    from .branch_grpo import BranchGRPO
    from .crd import CRD
    from .dance_grpo import DanceGRPO
    from .ddpo import DDPO
    from .dgpo import DGPO
    from .diffusion_nft import DiffusionNFT
    from .dpo import DPO
    from .fdfo import FDFO
    from .flash_grpo import FlashGRPO
    from .flow_dppo import FlowDPPO
    from .flow_grpo import FlowGRPO
    from .flow_grpo_fast import FlowGRPOFast
    from .flowawr import FlowAWR
    from .g2rpo import G2RPO
    from .grpo_guard import GRPOGuard
    from .mix_grpo import MixGRPO
    from .mix_grpo_flash import MixGRPOFlash
    from .ram import RAM
    from .rvm import RVM
    from .tempflow_grpo import TempFlowGRPO
    from .turningpoint_grpo import TurningPointGRPO
    from .vgrpo import VGRPO

    ALGORITHMS: dict[str, type[Any]]

CLASSES = {
    # forward process
    "advantageflow": "AdvantageFlow",
    "flowawr": "FlowAWR",
    "diffusion_nft": "DiffusionNFT",
    "awm": "AWM",
    "fdfo": "FDFO",
    "dgpo": "DGPO",
    "crd": "CRD",
    "dpo": "DPO",
    "ram": "RAM",
    "rvm": "RVM",
    "vgrpo": "VGRPO",
    # reverse process
    "ddpo": "DDPO",
    "flow_grpo": "FlowGRPO",
    "flow_grpo_fast": "FlowGRPOFast",
    "dance_grpo": "DanceGRPO",
    "mix_grpo": "MixGRPO",
    "mix_grpo_flash": "MixGRPOFlash",
    "tempflow_grpo": "TempFlowGRPO",
    "g2rpo": "G2RPO",
    "grpo_guard": "GRPOGuard",
    "flow_dppo": "FlowDPPO",
    "flash_grpo": "FlashGRPO",
    "turningpoint_grpo": "TurningPointGRPO",
    "branch_grpo": "BranchGRPO",
}  # the module of each has its name
_MODULES = {kind: name for name, kind in CLASSES.items()}


def __getattr__(name: str) -> Any:
    if name == "ALGORITHMS":
        found: Any = {key: getattr(import_module(f".{key}", __name__), kind) for key, kind in CLASSES.items()}
    elif name in _MODULES:
        found = getattr(import_module(f".{_MODULES[name]}", __name__), name)
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    """What may be imported, for completion in notebooks: most of it is not there before its first use."""
    return sorted({*globals(), *__all__})


__all__ = [
    "ALGORITHMS",
    "AWM",
    "CRD",
    "DDPO",
    "DGPO",
    "DPO",
    "FDFO",
    "G2RPO",
    "RAM",
    "RVM",
    "VGRPO",
    "AdvantageFlow",
    "BranchGRPO",
    "DanceGRPO",
    "DiffusionNFT",
    "FlashGRPO",
    "FlowAWR",
    "FlowDPPO",
    "FlowGRPO",
    "FlowGRPOFast",
    "GRPOGuard",
    "MixGRPO",
    "MixGRPOFlash",
    "TempFlowGRPO",
    "TurningPointGRPO",
]
