"""All loss equations as functions of plain tensors, each imported from its algorithm's file."""

from ..learning.terms import clipped_ratio
from .advantageflow import advantageflow
from .awm import awm
from .crd import crd
from .dgpo import dgpo
from .diffusion_nft import diffusion_nft
from .dpo import dpo
from .fdfo import fdfo
from .flowawr import flowawr
from .opd import opd
from .policy_gradient import policy_gradient
from .ram import ram
from .rvm import rvm
from .vgrpo import vgrpo

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
    "opd",
    "policy_gradient",
    "ram",
    "rvm",
    "vgrpo",
]
