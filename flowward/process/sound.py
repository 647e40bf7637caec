"""Waveforms [C, T] in [-1, 1]: as WAV files, as small files for pages, and as pictures (a spectrogram)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Kind = Literal["int16", "float32"]
PCM, FLOAT, MU_LAW, EXTENSIBLE = 1, 3, 7, 0xFFFE  # format tags of WAV
FULL = 32767  # of 16 bits, at 1.0
HEARD, PREVIEW = 10.0, 16_000  # seconds and Hz, at most, of the sounds in a page
MU = 255
WIDTH, HEIGHT, SHOWN = 320, 200, 240  # of a picture, in pixels, and its width on a page
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 22  # margins
FLOOR = -90.0  # dB below a sine of full scale, at which a spectrogram is black
INK, GREY = (36, 39, 44), (211, 214, 218)
SHADES = ((0, 0, 4), (60, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))  # FLOOR to 0 dB


def wav(waveform: Tensor, rate: int, kind: Kind = "int16") -> bytes:
    """A waveform [C, T] as a WAV file.

    Args:
        kind: `float32` keeps every number; `int16` clamps to [-1, 1] and rounds to 1 / 32767.

    Raises:
        ValueError: the shape is another, or the rate is not a positive whole number.
    """
    refuse(waveform, rate)
    values = waveform.detach().cpu().float().t().contiguous().numpy()
    if kind == "float32":
        return _file(values.astype("<f4").tobytes(), FLOAT, len(waveform), rate, 32)
    return _file((values.clip(-1, 1) * FULL).round().astype("<i2").tobytes(), PCM, len(waveform), rate, 16)


def refuse(waveform: Tensor, rate: object) -> None:
    """Raise ValueError unless this is a waveform [C, T] with a rate in Hz."""
    if waveform.ndim != 2 or not waveform.numel():
        raise ValueError(f"a waveform has the shape [channels, time], not {list(waveform.shape)}")
    refuse_rate(rate)


def refuse_rate(rate: object) -> None:
    """Raise ValueError unless this is a number of samples per second."""
    if not isinstance(rate, int) or isinstance(rate, bool) or rate < 1:
        raise ValueError(f"a waveform needs its rate, a positive whole number of samples per second, not {rate!r}")


def _file(data: bytes, tag: int, channels: int, rate: int, bits: int) -> bytes:
    frame = channels * bits // 8
    head = struct.pack("<HHIIHH", tag, channels, rate, rate * frame, frame, bits)
    more = b"" if tag == PCM else struct.pack("<H", 0)  # formats other than PCM say how much follows
    fact = b"" if tag == PCM else b"fact" + struct.pack("<II", 4, len(data) // frame)
    body = b"WAVEfmt " + struct.pack("<I", len(head + more)) + head + more + fact
    body += b"data" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def read(data: bytes) -> tuple[Tensor, int]:
    """The waveform [C, T], float32, and the rate of a WAV file of 16-bit or float samples.

    Raises:
        ValueError: it is another kind of file, or damaged.
    """
    chunks = _chunks(data)
    try:
        tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", chunks[b"fmt "])
        if tag == EXTENSIBLE:  # the real tag is the beginning of a longer one
            (tag,) = struct.unpack_from("<H", chunks[b"fmt "], 24)
        body = chunks[b"data"]
    except (KeyError, struct.error) as error:
        raise ValueError("this is not a whole WAV file") from error
    kinds = {(PCM, 16): "<i2", (FLOAT, 32): "<f4"}
    if (tag, bits) not in kinds:
        raise ValueError(f"a WAV file must have samples of 16 bits or floats of 32, not {bits} bits of format {tag}")
    if not channels or not rate or not body or len(body) % (channels * bits // 8):
        raise ValueError("this is not a whole WAV file")
    values = np.frombuffer(body, kinds[tag, bits]).astype(np.float32).reshape(-1, channels).T
    return torch.from_numpy(values / FULL if tag == PCM else values.copy()), rate


def _chunks(data: bytes) -> dict[bytes, bytes]:
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise ValueError("this is not a WAV file")
    found, at = dict[bytes, bytes](), 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        if at + 8 + size > len(data):
            raise ValueError("this is not a whole WAV file")
        found.setdefault(data[at : at + 4], data[at + 8 : at + 8 + size])
        at += 8 + size + size % 2
    return found


def resampled(waveforms: Tensor, rate: int, wanted: int) -> Tensor:
    """Waveforms [..., T] at another rate (a polyphase filter, scipy's): [..., ceil(T wanted / rate)], on the CPU."""
    if rate == wanted:
        return waveforms.detach().cpu().float()
    from scipy.signal import resample_poly

    shared = math.gcd(rate, wanted)
    found = resample_poly(waveforms.detach().cpu().float().numpy(), wanted // shared, rate // shared, axis=-1)
    return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


def preview(waveform: Tensor, rate: int) -> bytes:
    """A small WAV file for pages: one channel, 8 bits (mu-law), PREVIEW Hz and HEARD seconds at most."""
    refuse(waveform, rate)
    own = waveform[:, : int(HEARD * rate)].float().mean(0)
    own, rate = (resampled(own, rate, PREVIEW), PREVIEW) if rate > PREVIEW else (own.cpu(), rate)
    return _file(mu_law(own.numpy()), MU_LAW, 1, rate, 8)


def mu_law(values: NDArray[np.float32]) -> bytes:
    """Values in [-1, 1] as G.711 mu-law: sign, exponent and four bits of the mantissa, inverted."""
    size = np.minimum(np.abs((values.clip(-1, 1) * 32635).round().astype(np.int32)), 32635) + 132
    exponent = np.floor(np.log2(size)).astype(np.int32) - 7
    mantissa = (size >> (exponent + 3)) & 15
    coded = np.where(values < 0, 128, 0) | exponent << 4 | mantissa
    return (MU - coded).astype(np.uint8).tobytes()


def pictures(waveforms: Tensor, rate: int) -> Tensor:
    """Pictures [B, 3, HEIGHT, WIDTH] in [0, 1] of waveforms [B, C, T]: spectrograms in dB, on a mel scale."""
    drawn = [_picture(each, rate) for each in waveforms.detach().float().cpu().nan_to_num()]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2).float() / 255


def _picture(waveform: Tensor, rate: int) -> NDArray[np.uint8]:
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    size = (WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM)
    levels = spectrogram(waveform, rate, size[1])
    cells = Image.fromarray(_shaded(levels)).resize(size, Image.Resampling.BILINEAR)
    image.paste(cells, (LEFT, TOP))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(14)
    for hertz in (250, 1000, 4000, 16_000):
        if hertz <= 0.9 * rate / 2:
            down = TOP + size[1] * (1 - _mel(hertz) / _mel(rate / 2))
            draw.line((LEFT - 3, down, LEFT - 1, down), fill=GREY)
            said = f"{hertz // 1000}k" if hertz >= 1000 else str(hertz)
            draw.text((LEFT - 5, down), said, fill=INK, font=font, anchor="rm")
    seconds = waveform.shape[-1] / rate
    draw.text((LEFT, HEIGHT - 2), "0 s", fill=INK, font=font, anchor="ls")
    draw.text((WIDTH - RIGHT, HEIGHT - 2), f"{seconds:.3g} s", fill=INK, font=font, anchor="rs")
    return np.asarray(image)


def spectrogram(waveform: Tensor, rate: int, rows: int) -> Tensor:
    """dB [rows, frames] of a waveform [C, T], high frequencies first: the loudest of a band; 0 is a full sine."""
    window = 2 ** max(5, round(math.log2(rate * 0.046)))  # 46 ms, as many programs show
    hop = max(window // 4, waveform.shape[-1] // (3 * WIDTH))
    hann = torch.hann_window(window)
    padded = torch.nn.functional.pad(waveform, (window // 2, window // 2 + max(0, window - waveform.shape[-1])))
    found = torch.stft(padded, window, hop, window=hann, center=False, return_complex=True)
    power = (found.abs() * 2 / hann.sum()).square().mean(0)
    inside, nearest = _bands(rows, window, rate)
    loudest = power.new_zeros(rows, power.shape[1]).scatter_reduce(0, inside[:, None].expand_as(power), power, "amax")
    filled = torch.zeros(rows, dtype=torch.bool).index_fill(0, inside, True)
    levels = torch.where(filled[:, None], loudest, power[nearest])  # low bands are narrower than a frequency
    return (10 * levels.clamp(min=1e-12).log10()).flip(0)


@cache
def _bands(rows: int, window: int, rate: int) -> tuple[Tensor, Tensor]:
    """The band of each frequency, [window / 2 + 1], and the frequency that is nearest to the middle of each, [rows]."""
    places = torch.linspace(0, rate / 2, window // 2 + 1)
    mels = 2595 * (1 + places / 700).log10() / _mel(rate / 2) * rows
    nearest = (mels[None] - (torch.arange(rows) + 0.5)[:, None]).abs().argmin(1)
    return mels.long().clamp(max=rows - 1), nearest


def _mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _shaded(levels: Tensor) -> NDArray[np.uint8]:
    share = (1 - levels.clamp(FLOOR, 0) / FLOOR).numpy()
    stops = np.linspace(0, 1, len(SHADES))
    channels: Sequence[NDArray[np.float64]] = [
        np.interp(share, stops, [shade[k] for shade in SHADES]) for k in range(3)
    ]
    return np.stack(channels, -1).round().astype(np.uint8)
