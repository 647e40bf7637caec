"""The equations as functions on plain tensors, each from its algorithm's file."""

from .algorithms.advantageflow import advantageflow
from .algorithms.awm import awm
from .algorithms.crd import crd
from .algorithms.dgpo import dgpo
from .algorithms.diffusion_nft import diffusion_nft
from .algorithms.dpo import dpo
from .algorithms.fdfo import fdfo
from .algorithms.flowawr import flowawr
from .algorithms.policy_gradient import policy_gradient
from .terms import clipped_ratio

__all__ = [
    "advantageflow",
    "awm",
    "clipped_ratio",
    "crd",
    "dgpo",
    "diffusion_nft",
    "dpo",
    "fdfo",
    "flowawr",
    "policy_gradient",
]
