"""Waveforms [C, T] in [-1, 1] as WAV files, and as small files for pages. Their pictures: spectrograms.py."""

from __future__ import annotations

import math
import struct
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Kind = Literal["int16", "float32"]
PCM, FLOAT, MU_LAW, EXTENSIBLE = 1, 3, 7, 0xFFFE  # format tags of WAV
FULL = 32767  # of 16 bits, at 1.0
HEARD, PREVIEW = 10.0, 16_000  # seconds and Hz, at most, of the sounds in a page
MU = 255


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
