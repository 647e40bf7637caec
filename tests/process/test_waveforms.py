"""Waveforms as WAV files, as small files for pages, and as pictures."""

from __future__ import annotations

import io
import math
import struct
import wave
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flowward.process import medium, sound, spectrograms


def sine(hertz: float, rate: int, seconds: float = 1.0, level: float = 0.5) -> Tensor:
    return level * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * rate)) / rate)[None]


def test_float_files_keep_every_number_and_16_bits_every_level() -> None:
    waveform = torch.randn(2, 1001, generator=torch.Generator().manual_seed(0)).clamp(-1, 1)
    found, rate = sound.read(sound.wav(waveform, 44_100, "float32"))
    assert rate == 44_100 and torch.equal(found, waveform)
    data = sound.wav(waveform, 44_100)
    found, rate = sound.read(data)
    assert rate == 44_100 and (found - waveform).abs().max() <= 0.5 / 32767 + 1e-7
    assert sound.wav(found, rate) == data
    with wave.open(io.BytesIO(data)) as file:
        assert (file.getnchannels(), file.getframerate(), file.getnframes(), file.getsampwidth()) == (
            2,
            44_100,
            1001,
            2,
        )
        levels = np.frombuffer(file.readframes(1001), "<i2").reshape(-1, 2).T
    assert np.array_equal(levels, (waveform * 32767).round().numpy())


def test_values_beyond_full_scale_are_clamped_in_16_bits() -> None:
    found, _ = sound.read(sound.wav(torch.tensor([[2.0, -3.0]]), 8000))
    assert found.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("rate", [None, 0, -1, 44_100.0, True, "44100"])
def test_a_waveform_without_a_rate_is_refused(rate: Any) -> None:
    for made in (lambda: sound.wav(torch.zeros(1, 8), rate), lambda: medium.waveforms(1, 8, rate)):
        with pytest.raises(
            ValueError, match="a waveform needs its rate, a positive whole number of samples per second"
        ):
            made()


def test_what_is_no_waveform_is_refused() -> None:
    with pytest.raises(ValueError, match=r"has the shape \[channels, time\], not \[3, 4, 4\]"):
        sound.wav(torch.zeros(3, 4, 4), 8000)


def test_damaged_files_are_refused() -> None:
    whole = sound.wav(torch.zeros(2, 10), 8000)
    for bad in (b"", b"RIFF", b"\x89PNG" + whole, whole[:30], whole[:-1], whole.replace(b"data", b"junk")):
        with pytest.raises(ValueError, match=r"not a (whole )?WAV file"):
            sound.read(bad)
    with pytest.raises(ValueError, match="not 24 bits"):
        sound.read(whole[:34] + struct.pack("<H", 24) + whole[36:])


def expanded(coded: int) -> float:
    """G.711: a byte of mu-law as a value in [-1, 1]."""
    byte = 255 - coded
    size = (((byte & 15) << 3) + 132 << (byte >> 4 & 7)) - 132
    return (-size if byte & 128 else size) / 32635


def test_previews_are_small_and_close() -> None:
    values = np.linspace(-1, 1, 4001).astype(np.float32)
    back = np.array([expanded(each) for each in sound.mu_law(values)])
    assert np.all(np.abs(back - values) <= np.abs(values) / 16 + 1e-3)
    data = sound.preview(torch.cat([sine(440, 48_000, 30), sine(440, 48_000, 30)]), 48_000)
    tag, channels, rate, _, _, bits = struct.unpack_from("<HHIIHH", data, 20)
    assert (tag, channels, rate, bits) == (7, 1, sound.PREVIEW, 8)
    assert len(data) == pytest.approx(sound.HEARD * sound.PREVIEW, abs=100)
    body = np.array([expanded(each) for each in data[-sound.PREVIEW :]])
    assert np.sqrt(np.mean(body**2)) == pytest.approx(0.5 / math.sqrt(2), rel=0.01)


@pytest.mark.parametrize(("rate", "hertz"), [(44_100, 440.0), (16_000, 3000.0), (800, 100.0)])
def test_a_spectrogram_shows_the_level_and_the_pitch_of_a_sine(rate: int, hertz: float) -> None:
    levels = spectrograms.spectrogram(sine(hertz, rate, 2.0, 0.1), rate, 100)
    middle = levels[:, levels.shape[1] // 2]
    assert middle.max().item() == pytest.approx(
        -20, abs=1.5
    )  # between two frequencies of the transform 1.4 dB are lost
    row = 100 * (1 - spectrograms._mel(hertz) / spectrograms._mel(rate / 2))
    assert abs(middle.argmax().item() + 0.5 - row) < 4


def test_a_medium_of_waveforms_says_all_that_pages_and_rewards_ask() -> None:
    made, samples = medium.waveforms(2, 8000, 8000), torch.stack([sine(440, 8000).expand(2, -1)] * 3)
    assert (made.noun, made.shape, made.bounds, made.facts) == ("sounds", (2, 8000), (-1.0, 1.0), {"rate": 8000})
    pictures = made.draw(samples, ["a"] * 3)
    assert (
        pictures.shape == (3, 3, spectrograms.HEIGHT, spectrograms.WIDTH)
        and pictures.min() >= 0
        and pictures.max() <= 1
    )
    assert [sound.read(each)[1] for each in made.files(samples)] == [8000] * 3
    assert [each[:4] for each in made.heard(samples)] == [b"RIFF"] * 3
    assert medium.images(8, 8).files(samples) == medium.images(8, 8).heard(samples) == []
    assert spectrograms.pictures(torch.zeros(1, 1, 3), 8000).isfinite().all()  # shorter than a window, and silent
