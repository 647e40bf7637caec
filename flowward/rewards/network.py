"""Shared by rewards with a network: its device, image preprocessing, and a cache of prompt embeddings."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar
from weakref import WeakValueDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..system.errors import positive
from .revisions import commits
from .reward import RewardError

Dtype = Literal["auto", "float32", "float16", "bfloat16"]
Shared = TypeVar("Shared")
Place = tuple[str, torch.dtype, bool]  # device, dtype, and whether weights are offloaded between uses
SOURCES = ("model", "processor", "tokenizer", "head", "clip")  # options that are hub ids or paths
REMEMBERED = 4096  # prompt embeddings in the cache: 16 MB at width 1024
_shared: WeakValueDictionary[Hashable, Any] = WeakValueDictionary()


@dataclass
class NetworkReward:
    """Settings of a reward with a network. Subclasses load it in `__post_init__`, before a run starts."""

    model: str
    """load the network from this hub id (owner/name or owner/name@revision) or folder"""
    device: str = "auto"
    """run the network on this device (auto: CUDA if there is one, else the CPU)"""
    dtype: Dtype = "auto"
    """store weights in this dtype (auto: float16 on CUDA, like published scores; else float32)"""
    batch: int = 32
    """process this many images or prompts at once; changes scores only by rounding"""
    offload: bool = False
    """keep weights on the CPU between uses"""

    def __post_init__(self) -> None:
        positive(self, "batch")

    def place(self) -> Place:
        """The device, the dtype, and whether weights are offloaded between uses.

        Raises:
            ValueError: this machine has no such device.
        """
        from ..models import hub

        device = hub.device(self.device)
        auto = "float16" if device.startswith("cuda") else "float32"
        return device, getattr(torch, auto if self.dtype == "auto" else self.dtype), self.offload

    @property
    def scale(self) -> float:
        """Scores are multiplied by this before a backward pass in half precision, which would round it to 0."""
        return 2.0**10 if self.place()[1] == torch.float16 else 1.0

    @property
    def identity(self) -> dict[str, str]:
        """The commits of the repositories on the hub that it is loaded from; folders have none."""
        return commits(getattr(self, each.name) or self.model for each in fields(self) if each.name in SOURCES)

    def expect(self, images: Tensor, prompts: Sequence[str], dimensions: int = 4) -> None:
        """Raise RewardError unless images are [B, 3, H, W] (videos: [B, F, 3, H, W]) with one prompt each."""
        if images.ndim != dimensions or images.shape[-3] != 3 or not images.numel():
            wanted = "images of shape [B, 3, H, W]" if dimensions == 4 else "videos of shape [B, F, 3, H, W]"
            raise RewardError(f"{type(self).__name__} needs {wanted}, not {list(images.shape)}")
        if len(prompts) != len(images):
            raise RewardError(
                f"{type(self).__name__} needs one prompt per image, not {len(prompts)} for {len(images)} images"
            )


def shared(key: Hashable, make: Callable[[], Shared]) -> Shared:
    """One object per key, shared by all rewards while any of them exists, so that weights are stored once."""
    found: Shared | None = _shared.get(key)
    if found is None:
        found = _shared[key] = make()
    return found


class Resident:
    """A frozen network on its device; with `offload`, only while it is used."""

    def __init__(self, network: nn.Module, device: str, dtype: torch.dtype, offload: bool):
        home = "cpu" if offload else device
        self.network: Any = network.requires_grad_(False).eval().to(device=home, dtype=dtype)
        self.device, self.dtype, self.offload = device, dtype, offload

    @contextmanager
    def at_work(self, gradients: bool = False) -> Iterator[Any]:
        """The network on its device. With `gradients`, the graph is kept, and an offloaded network stays there.

        Raises:
            RewardError: the device is out of memory.
        """
        try:
            if self.offload:
                self.network.to(self.device)
            with torch.set_grad_enabled(gradients):
                yield self.network
        except torch.OutOfMemoryError as error:
            raise RewardError(
                f"{type(self.network).__name__} does not fit into the memory of {self.device}; lower the reward's "
                "batch, or set offload=true"
            ) from error
        finally:
            if self.offload and not gradients:  # the backward pass still needs it
                self.network.to("cpu")


@dataclass(frozen=True)
class Preprocess:
    """Preprocess images [B, 3, H, W] in [0, 1] for a network: resize, crop or pad, normalise.

    The result agrees with a transformers processor on 8-bit images to 1.2 of 255 levels, and to a third of a level on
    average. The difference: PIL rounds to whole levels after each direction. Like PIL, this resizes along the width,
    then along the height, and clamps to [0, 1] after each. In one step, hard edges would differ by 20 levels. Newer
    Pillow versions start with the height if that saves work, mostly for tall images. There hard edges, and only these,
    differ as much.
    """

    size: tuple[int, int]  # height and width of the result
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mode: Literal["bicubic", "bilinear"] = "bicubic"
    fit: Literal["crop", "stretch", "pad"] = "crop"  # for images of another aspect ratio
    shortest: int | None = None  # shorter edge before the crop (None: the larger one of `size`)

    @classmethod
    def of(cls, processor: Any) -> Preprocess:
        """The same steps as a transformers processor.

        Raises:
            ValueError: the processor has steps other than resizing, cropping and normalising.
        """
        config = processor.to_dict()
        size, crop = dict(config.get("size") or {}), dict(config.get("crop_size") or {})
        mode: dict[Any, Literal["bicubic", "bilinear"]] = {2: "bilinear", 3: "bicubic"}
        crops = config.get("do_center_crop") and "height" in crop
        known = all(config.get(step, True) for step in ("do_resize", "do_rescale", "do_normalize"))
        known = known and abs(255 * config.get("rescale_factor", 1 / 255) - 1) < 1e-6
        if not known or config.get("do_pad") or config.get("resample") not in mode:
            raise ValueError(f"{type(processor).__name__} has image preprocessing that flowward does not support")
        normal = tuple(config["image_mean"]), tuple(config["image_std"])
        how = mode[config["resample"]]
        shortest = size.get("shortest_edge")
        if crops and shortest and shortest >= max(crop["height"], crop["width"]):
            return cls((crop["height"], crop["width"]), *normal, how, "crop", shortest)
        if not crops and size.get("height") and size.get("width"):
            return cls((size["height"], size["width"]), *normal, how, "stretch")
        raise ValueError(f"{type(processor).__name__} has image preprocessing that flowward does not support")

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] -> [B, 3, *size], normalised, float32."""
        images = self._fitted(images.float())
        mean, std = (torch.tensor(values, device=images.device).view(-1, 1, 1) for values in (self.mean, self.std))
        return (images - mean) / std

    def _fitted(self, images: Tensor) -> Tensor:
        (height, width), (rows, columns) = images.shape[-2:], self.size
        match self.fit:
            case "stretch":
                return self._resized(images, rows, columns)
            case "crop":
                edge, short = self.shortest or max(rows, columns), min(height, width)
                images = self._resized(images, int(edge * height / short), int(edge * width / short))
                top, left = (images.shape[-2] - rows) // 2, (images.shape[-1] - columns) // 2
                return images[..., top : top + rows, left : left + columns]
            case "pad":
                scale = min(rows / height, columns / width)
                images = self._resized(images, max(1, round(scale * height)), max(1, round(scale * width)))
                more, wide = rows - images.shape[-2], columns - images.shape[-1]
                return F.pad(images, (wide // 2, wide - wide // 2, more // 2, more - more // 2))

    def _resized(self, images: Tensor, height: int, width: int) -> Tensor:
        for size in ((images.shape[-2], width), (height, width)):
            if size != images.shape[-2:]:
                images = F.interpolate(images, size, mode=self.mode, antialias=True)
            images = images.clamp(0, 1)
        return images


class Embedded:
    """A cache of prompt embeddings; if there are more than `bound`, the oldest are removed."""

    def __init__(self, embed: Callable[[list[str], int], Tensor], bound: int = REMEMBERED):
        self.embed, self.bound = embed, bound
        self._known: dict[str, Tensor] = {}

    def __call__(self, prompts: Sequence[str], batch: int) -> Tensor:
        """Embeddings [B, D] of B prompts; new ones are computed `batch` at a time."""
        if missing := [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._known]:
            self._known.update(zip(missing, self.embed(missing, batch), strict=True))
        rows = torch.stack([self._known[prompt] for prompt in prompts])
        for oldest in list(self._known)[: max(0, len(self._known) - self.bound)]:
            del self._known[oldest]
        return rows


def linears(state: Mapping[str, Tensor], name: str) -> nn.Sequential:
    """Linear layers without activations, in float32, from `layers.NUMBER.weight` and `.bias`.

    Raises:
        ValueError: the state has no such weights.
    """
    weights = [key for key in state if key.startswith("layers.") and key.endswith(".weight")]
    layers: list[nn.Module] = []
    try:
        for number in sorted(int(key.split(".")[1]) for key in weights):
            weight, bias = state[f"layers.{number}.weight"].float(), state[f"layers.{number}.bias"].float()
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers.append(layer)
    except (KeyError, IndexError, ValueError, RuntimeError):
        layers = []
    if not layers:
        raise ValueError(f"{name} has no linear layers (layers.NUMBER.weight and layers.NUMBER.bias)")
    return nn.Sequential(*layers)


def weights(path: Path) -> dict[str, Tensor]:
    """Read tensors from a .safetensors or torch.save file, without running code from it.

    Raises:
        ValueError: the file has another format, is damaged, or contains other objects than tensors.
    """
    import pickle

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{path} is not a weight file, is damaged, or contains other objects than tensors") from error
    except (OSError, RuntimeError, ValueError, EOFError, SafetensorError) as error:
        raise ValueError(f"cannot read weights from {path}: {' '.join(str(error).split())[:200]}") from error
    state = held.get("state_dict", held) if isinstance(held, dict) else {}
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} has no named weights; a state dict is needed")
    return tensors
