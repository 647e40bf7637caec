"""Every algorithm is a value of four parts: rollout, credit, points and one equation."""

from .advantageflow import AdvantageFlow
from .awm import AWM
from .crd import CRD
from .dgpo import DGPO
from .diffusion_nft import DiffusionNFT
from .dpo import DPO
from .fdfo import FDFO
from .flowawr import FlowAWR

ALGORITHMS = {
    "advantageflow": AdvantageFlow,
    "flowawr": FlowAWR,
    "diffusion_nft": DiffusionNFT,
    "awm": AWM,
    "fdfo": FDFO,
    "dgpo": DGPO,
    "crd": CRD,
    "dpo": DPO,
}

__all__ = ["ALGORITHMS", "AWM", "CRD", "DGPO", "DPO", "FDFO", "AdvantageFlow", "DiffusionNFT", "FlowAWR"]
