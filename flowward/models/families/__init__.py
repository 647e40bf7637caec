"""Families of diffusers models, by the class of their pipeline."""

from __future__ import annotations

from .ace_step import AceStep
from .anyflow import AnyFlow
from .aura_flow import AuraFlow
from .bria import Bria
from .bria_fibo import BriaFibo
from .bria_fibo2 import BriaFibo2
from .bria_fibo_edit import BriaFiboEdit
from .chroma import Chroma
from .cogview4 import CogView4
from .ernie_image import ErnieImage
from .family import Family
from .flux import Flux, FluxKontext
from .flux2 import Flux2, Flux2Klein
from .hidream import HiDream
from .hunyuan_video import HunyuanImageToVideo, HunyuanSkyReels, HunyuanVideo
from .hunyuan_video15 import HunyuanVideo15
from .hunyuan_video15_i2v import HunyuanVideo15ImageToVideo
from .kandinsky5 import Kandinsky5
from .kandinsky5_edit import Kandinsky5Edit
from .kandinsky5_video import Kandinsky5ImageToVideo, Kandinsky5Video
from .krea2 import Krea2
from .longcat_audio import LongCatAudio
from .longcat_image import LongCatImage
from .longcat_image_edit import LongCatImageEdit
from .ltx import LTX, LTXImageToVideo
from .lumina2 import Lumina2
from .mochi import Mochi
from .nucleus_image import NucleusImage
from .ovis_image import OvisImage
from .qwen_image import FirstQwenImageEdit, QwenImage, QwenImageEdit
from .qwen_image21 import QwenImage21
from .sana import Sana
from .sana_video import SanaImageToVideo, SanaVideo
from .sd3 import StableDiffusion3
from .skyreels_v2 import SkyReelsV2
from .stable_audio_3 import StableAudio3
from .wan import Wan
from .wan_i2v import ChronoEdit, SkyReelsV2ImageToVideo, WanImageToVideo
from .wan_vace import WanVACE
from .z_image import ZImage
from .z_image_omni import ZImageOmni

_ALL: tuple[type[Family], ...] = (
    StableDiffusion3, Flux, FluxKontext, Flux2Klein, QwenImage, QwenImageEdit, ZImage, Sana, AuraFlow,
    CogView4, Lumina2, Chroma, OvisImage, Bria, Wan, AnyFlow,
    Flux2, LongCatImage, Krea2, ErnieImage, BriaFibo, NucleusImage, BriaFibo2, QwenImage21, Kandinsky5,
    HiDream,
    HunyuanVideo15, HunyuanVideo, LTX, Mochi, SkyReelsV2, SanaVideo,
    WanImageToVideo, SkyReelsV2ImageToVideo, ChronoEdit, LTXImageToVideo,
    HunyuanVideo15ImageToVideo, WanVACE, SanaImageToVideo, HunyuanSkyReels,
    FirstQwenImageEdit, LongCatImageEdit, Kandinsky5Edit, BriaFiboEdit, ZImageOmni,
    Kandinsky5Video, Kandinsky5ImageToVideo, HunyuanImageToVideo,
    StableAudio3, AceStep, LongCatAudio,
)  # fmt: skip
FAMILIES: dict[str, type[Family]] = {name: family for family in _ALL for name in family.pipelines}

__all__ = ["FAMILIES", "Family"]
