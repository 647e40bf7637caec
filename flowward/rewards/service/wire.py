"""The wire format between a reward client and a reward server. It cannot contain code.

A call is a safetensors file (little endian, self-describing) with two tensors. `images` is float32, float16 or uint8,
[B, 3, H, W] or [B, F, 3, H, W]. `request` has the UTF-8 bytes of a JSON object with `prompts` (B texts) and `metadata`
(B objects, or null). Or a call is JSON alone, with `images` as B PNG files in base64 (for a video, a list of them).
Sounds come as `waveforms`, float32 or float16 [B, C, T], with their `rate` (Hz) in the metadata; in JSON as `sounds`,
B WAV files in base64, of 16 bits or float.
The answer is JSON: {"scores": [B numbers]}, or {"detail": "a sentence"} with a status other than 200.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ...process import sound
from ...prompts.pixels import rgb

TENSORS = "application/x-safetensors"
JSON = "application/json"
ENCODINGS = {"float32": TENSORS, "float16": TENSORS, "uint8": TENSORS, "png": JSON}  # content types
SUFFIXES = {"float32": torch.float32, "float16": torch.float16, "uint8": torch.uint8}


class Refused(ValueError):
    """An invalid call, with the HTTP status to answer."""

    def __init__(self, status: int, sentence: str):
        super().__init__(sentence)
        self.status = status


@dataclass(frozen=True)
class Call:
    """The arguments of a reward."""

    images: Tensor  # float32 [B, 3, H, W] or [B, F, 3, H, W], or waveforms [B, C, T]
    prompts: list[str]
    metadata: list[dict[str, Any]] | None

    @classmethod
    def of(cls, images: Tensor, prompts: Any, metadata: Any) -> Call:
        """Make a call from parsed JSON. Raise Refused (422) if types are wrong."""
        return cls(images, _texts(prompts), _mappings(metadata))

    def __post_init__(self) -> None:
        """Raise Refused (422) if counts differ, the shape is wrong, or images have NaN or infinity."""
        heard = self.images.ndim == 3 and self.images.numel()
        if not heard and (self.images.ndim not in (4, 5) or self.images.shape[-3] != 3 or not self.images.numel()):
            raise Refused(422, f"images must be [B, 3, H, W] or [B, F, 3, H, W], not {list(self.images.shape)}")
        if len(self.images) != len(self.prompts):
            raise Refused(
                422, f"a call needs one prompt per image, not {len(self.prompts)} for {len(self.images)} images"
            )
        if self.metadata is not None and len(self.metadata) != len(self.prompts):
            raise Refused(
                422, f"`metadata` needs one object per image, not {len(self.metadata)} for {len(self.images)} images"
            )
        if heard and not all(type(about.get("rate")) is int and about["rate"] > 0 for about in self.metadata or [{}]):
            raise Refused(422, "waveforms need their `rate`, samples per second, in the metadata of each")
        if bad := not_finite(self.images):
            raise Refused(
                422,
                f"{len(bad)} of {len(self.images)} images have NaN or infinity, the first for the prompt "
                f"'{self.prompts[bad[0]]}'",
            )


def _texts(prompts: Any) -> list[str]:
    if not isinstance(prompts, list) or not all(isinstance(prompt, str) for prompt in prompts):
        raise Refused(422, "`prompts` must be a list of strings")
    _refuse_unwritable("prompts", prompts)
    return prompts


def _mappings(metadata: Any) -> list[dict[str, Any]] | None:
    if metadata is None:
        return None
    if not isinstance(metadata, list) or not all(isinstance(about, dict) for about in metadata):
        raise Refused(422, "`metadata` must be null or a list of objects")
    _refuse_unwritable("metadata", metadata)
    return metadata


def _refuse_unwritable(name: str, value: Any) -> None:
    """Raise Refused (422) for what Python reads from JSON, but cannot write as JSON in UTF-8 again."""
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise Refused(
            422, f"`{name}` has NaN, infinity, or half of a surrogate pair, which JSON cannot hold"
        ) from error


def asked_of(body: bytes) -> tuple[list[str], list[dict[str, Any]] | None]:
    """Prompts and metadata of a request without images. Raise Refused if it is invalid."""
    request = _parsed(body)
    return _texts(request.get("prompts")), _mappings(request.get("metadata"))


def not_finite(images: Tensor) -> list[int]:
    """The rows with NaN or infinity; the minimum and maximum of a row with NaN are NaN."""
    least, most = images.flatten(1).aminmax(dim=1)
    rows: list[int] = (~(least.isfinite() & most.isfinite())).nonzero().flatten().tolist()
    return rows


def encode(images: Tensor, prompts: Sequence[str], metadata: Any, encoding: str) -> bytes:
    """Encode a call. Only float32 is exact; uint8 and png clamp to [0, 1] and round to 1/255.

    Waveforms [B, C, T] are sent as float32, float16, or (for png) as WAV files of 16 bits.

    Raises:
        TypeError, ValueError: the metadata cannot be written as JSON, or waveforms have no rate.
    """
    about = None if metadata is None else [dict(each) for each in metadata]
    request = {"prompts": list(prompts), "metadata": about}
    if images.ndim == 3:
        return _encoded_sounds(images, request, encoding)
    if encoding == "png":
        return json.dumps({"images": _nested(to_uint8(images)), **request}, allow_nan=False).encode()
    from safetensors.torch import save

    text = bytearray(json.dumps(request, allow_nan=False).encode())
    pixels = to_uint8(images) if encoding == "uint8" else images.detach().cpu().to(SUFFIXES[encoding])
    return save({"images": pixels.contiguous(), "request": torch.frombuffer(text, dtype=torch.uint8)})


def _encoded_sounds(waveforms: Tensor, request: dict[str, Any], encoding: str) -> bytes:
    from safetensors.torch import save

    if encoding == "png":
        rates = [each["rate"] for each in request["metadata"] or [{"rate": None}] * len(waveforms)]
        files = [sound.wav(each, rate) for each, rate in zip(waveforms, rates, strict=True)]
        sounds = [base64.b64encode(each).decode() for each in files]
        return json.dumps({"sounds": sounds, **request}, allow_nan=False).encode()
    text = bytearray(json.dumps(request, allow_nan=False).encode())
    values = waveforms.detach().cpu().to(SUFFIXES[encoding]).contiguous()
    return save({"waveforms": values, "request": torch.frombuffer(text, dtype=torch.uint8)})


def to_uint8(images: Tensor) -> Tensor:
    """[0, 1] to 0..255, clamped, on the CPU."""
    return (images.detach().cpu().float().clamp(0, 1) * 255).round().to(torch.uint8)


def png(image: Tensor) -> bytes:
    """One image, uint8 [3, H, W], as a PNG file."""
    with io.BytesIO() as file:
        Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG", compress_level=1)
        return file.getvalue()


def _nested(images: Tensor) -> list[Any]:
    return [_nested(i) if i.ndim == 4 else base64.b64encode(png(i)).decode() for i in images]


def decode(body: bytes, content_type: str, max_bytes: float = float("inf")) -> Call:
    """Decode a call; `max_bytes` limits the size of its images as float32, in any encoding.

    Raises:
        Refused: 400 if the body does not match its content type, 413 if the images are too large, 415 for an
            unknown content type, 422 for invalid contents.
    """
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (TENSORS, JSON):
        raise Refused(415, f"the content type must be {TENSORS} or {JSON}, not '{content_type}'")
    request, images = _of_tensors(body, max_bytes) if kind == TENSORS else _of_json(body, max_bytes)
    return Call.of(images, request.get("prompts"), request.get("metadata"))


def _of_tensors(body: bytes, max_bytes: float) -> tuple[dict[str, Any], Tensor]:
    from safetensors.torch import load

    try:
        tensors = load(body)
    except Exception as error:  # a damaged file raises many kinds
        raise Refused(400, "the body is not a safetensors file") from error
    if set(tensors) not in ({"images", "request"}, {"waveforms", "request"}):
        raise Refused(422, f"the tensors must be `images` and `request`, not {', '.join(sorted(tensors)) or 'none'}")
    heard = "waveforms" in tensors
    images, text = tensors["waveforms" if heard else "images"], tensors["request"]
    if heard and (images.ndim != 3 or images.dtype == torch.uint8):
        raise Refused(422, f"waveforms must be float32 or float16 [B, C, T], not {list(images.shape)}")
    if images.dtype not in SUFFIXES.values() or text.dtype != torch.uint8:
        given = [str(tensor.dtype).removeprefix("torch.") for tensor in (images, text)]
        raise Refused(422, f"`images` must be {', '.join(SUFFIXES)} and `request` uint8, not {' and '.join(given)}")
    if images.numel() * 4 > max_bytes:
        raise too_large(max_bytes)
    request = _parsed(text.numpy().tobytes())
    return request, images.float() / 255 if images.dtype == torch.uint8 else images.float()


def _of_json(body: bytes, max_bytes: float) -> tuple[dict[str, Any], Tensor]:
    request = _parsed(body)
    if "sounds" in request:
        return _of_sounds(request, max_bytes)
    given = request.get("images")
    if not isinstance(given, list) or not given:
        raise Refused(422, "`images` must be a list of PNG files in base64")
    left = max_bytes
    videos: list[Tensor] = []
    for item in given:
        frames: list[Tensor] = []
        for text in item if isinstance(item, list) else [item]:
            frames.append(_pixels(text, left, max_bytes))
            left -= 4 * frames[-1].numel()
        if len({frame.shape for frame in frames}) != 1:
            raise Refused(422, "a video needs at least one frame, and all frames must have the same size")
        videos.append(torch.stack(frames) if isinstance(item, list) else frames[0])
    if len({video.shape for video in videos}) != 1:
        raise Refused(422, "all images of a call must have the same size")
    return request, torch.stack(videos)


def _of_sounds(request: dict[str, Any], max_bytes: float) -> tuple[dict[str, Any], Tensor]:
    """Waveforms [B, C, T] of WAV files; their rate becomes part of the metadata."""
    given, found, rates = request["sounds"], list[Tensor](), list[int]()
    if not isinstance(given, list) or not given:
        raise Refused(422, "`sounds` must be a list of WAV files in base64")
    for text in given:
        try:
            waveform, rate = sound.read(base64.b64decode(text, validate=True))
        except (ValueError, TypeError) as error:
            raise Refused(400, f"a sound is not a WAV file in base64: {error}") from error
        found.append(waveform)
        rates.append(rate)
        if 4 * sum(each.numel() for each in found) > max_bytes:
            raise too_large(max_bytes)
    if len({each.shape for each in found}) != 1 or len(set(rates)) != 1:
        raise Refused(422, "all sounds of a call must have the same length, rate and number of channels")
    about = _mappings(request.get("metadata")) or [{} for _ in given]
    return {**request, "metadata": [{**each, "rate": rates[0]} for each in about]}, torch.stack(found)


def _parsed(text: bytes) -> dict[str, Any]:
    try:
        request = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Refused(400, "the request is not JSON") from error
    if not isinstance(request, Mapping):
        raise Refused(422, "the request must be an object with `prompts` and `metadata`")
    return dict(request)


def _pixels(text: Any, left: float, max_bytes: float) -> Tensor:
    """A PNG file in base64 as float32 [3, H, W]; its size is checked before decoding."""
    try:
        with io.BytesIO(base64.b64decode(text, validate=True)) as file, Image.open(file, formats=["PNG"]) as image:
            if 12 * image.width * image.height > left:
                raise too_large(max_bytes)
            shown = rgb(image)
            pixels = torch.frombuffer(bytearray(shown.tobytes()), dtype=torch.uint8)
            return pixels.view(shown.height, shown.width, 3).permute(2, 0, 1).float() / 255
    except Refused:
        raise
    except Exception as error:  # Pillow raises many kinds
        raise Refused(400, "an image is not a PNG file in base64") from error


def too_large(max_bytes: float) -> Refused:
    return Refused(413, f"a call may contain at most {max_bytes / 1e6:g} MB of images (counted as float32); send fewer")
