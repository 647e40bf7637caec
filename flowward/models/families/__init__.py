"""Families of diffusers models, by the class of their pipeline."""

from __future__ import annotations

from .ace_step import AceStep
from .anyflow import AnyFlow
from .aura_flow import AuraFlow
from .bria import Bria
from .chroma import Chroma
from .cogview4 import CogView4
from .family import Family
from .flux import Flux, FluxKontext
from .flux2 import Flux2Klein
from .longcat_audio import LongCatAudio
from .lumina2 import Lumina2
from .ovis_image import OvisImage
from .qwen_image import QwenImage, QwenImageEdit
from .sana import Sana
from .sd3 import StableDiffusion3
from .stable_audio_3 import StableAudio3
from .wan import Wan
from .z_image import ZImage

_ALL: tuple[type[Family], ...] = (
    StableDiffusion3, Flux, FluxKontext, Flux2Klein, QwenImage, QwenImageEdit, ZImage, Sana, AuraFlow,
    CogView4, Lumina2, Chroma, OvisImage, Bria, Wan, AnyFlow,
    StableAudio3, AceStep, LongCatAudio,
)  # fmt: skip
FAMILIES: dict[str, type[Family]] = {name: family for family in _ALL for name in family.pipelines}

__all__ = ["FAMILIES", "Family"]
