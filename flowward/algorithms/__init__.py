"""The algorithms. Each combines four parts: rollout, credit (advantages), training points and one loss equation."""

from .advantageflow import AdvantageFlow
from .awm import AWM
from .crd import CRD
from .dance_grpo import DanceGRPO
from .ddpo import DDPO
from .dgpo import DGPO
from .diffusion_nft import DiffusionNFT
from .dpo import DPO
from .fdfo import FDFO
from .flow_grpo import FlowGRPO
from .flow_grpo_fast import FlowGRPOFast
from .flowawr import FlowAWR
from .g2rpo import G2RPO
from .grpo_guard import GRPOGuard
from .mix_grpo import MixGRPO
from .mix_grpo_flash import MixGRPOFlash
from .tempflow_grpo import TempFlowGRPO

ALGORITHMS = {
    # forward process
    "advantageflow": AdvantageFlow,
    "flowawr": FlowAWR,
    "diffusion_nft": DiffusionNFT,
    "awm": AWM,
    "fdfo": FDFO,
    "dgpo": DGPO,
    "crd": CRD,
    "dpo": DPO,
    # reverse process
    "ddpo": DDPO,
    "flow_grpo": FlowGRPO,
    "flow_grpo_fast": FlowGRPOFast,
    "dance_grpo": DanceGRPO,
    "mix_grpo": MixGRPO,
    "mix_grpo_flash": MixGRPOFlash,
    "tempflow_grpo": TempFlowGRPO,
    "g2rpo": G2RPO,
    "grpo_guard": GRPOGuard,
}

__all__ = [
    "ALGORITHMS",
    "AWM",
    "CRD",
    "DDPO",
    "DGPO",
    "DPO",
    "FDFO",
    "G2RPO",
    "AdvantageFlow",
    "DanceGRPO",
    "DiffusionNFT",
    "FlowAWR",
    "FlowGRPO",
    "FlowGRPOFast",
    "GRPOGuard",
    "MixGRPO",
    "MixGRPOFlash",
    "TempFlowGRPO",
]
