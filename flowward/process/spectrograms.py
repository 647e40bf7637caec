"""Pictures of waveforms [C, T] in [-1, 1]: spectrograms in dB on a mel scale, with frequencies and seconds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

WIDTH, HEIGHT, SHOWN = 320, 200, 240  # of a picture, in pixels, and its width on a page
LEFT, RIGHT, TOP, BOTTOM = 38, 8, 8, 22  # margins
FLOOR = -90.0  # dB below a sine of full scale, at which a spectrogram is black
INK, GREY = (36, 39, 44), (211, 214, 218)
SHADES = ((0, 0, 4), (60, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109), (252, 253, 191))  # FLOOR to 0 dB


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
