"""Rewards on waveforms have closed forms: sines of known level, silence of known length, clicks of known tempo."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines as tiny
import torch
import transformers
from torch import Tensor

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.sound import levels
from flowward.rewards.sound.tempo import Tempo, beats

RATE = 48_000
ABOUT = [{"rate": RATE}]


def sine(level: float = 1.0, hertz: float = 997.0, seconds: float = 3.0) -> Tensor:
    return level * torch.sin(2 * math.pi * hertz * torch.arange(int(seconds * RATE)) / RATE)


@pytest.mark.parametrize("level", [1.0, 0.5, 0.01])
def test_a_sine_of_known_level_has_known_decibels(level: float) -> None:
    expected = 20 * math.log10(level / math.sqrt(2))
    assert levels.decibels(sine(level)[None, None]).item() == pytest.approx(expected, abs=1e-3)
    assert levels.loudness(sine(level)[None], RATE) == pytest.approx(expected, abs=0.01)  # BS.1770: 997 Hz, one channel
    both = sine(level).expand(2, -1)
    assert levels.loudness(both, RATE) == pytest.approx(expected + 10 * math.log10(2), abs=0.01)


def test_loudness_is_weighted_for_the_ear_and_leaves_out_pauses() -> None:
    assert levels.loudness(sine(0.1, 30)[None], RATE) < levels.loudness(sine(0.1, 997)[None], RATE) - 5
    pause = torch.cat([sine(0.1), torch.zeros(3 * RATE)])
    assert levels.loudness(pause[None], RATE) == pytest.approx(
        levels.loudness(sine(0.1)[None], RATE), abs=0.3
    )  # blocks at the edge are half silent
    assert levels.loudness(torch.zeros(1, RATE), RATE) == levels.SILENT
    assert levels.loudness(sine(0.1, seconds=0.1)[None], RATE) > levels.SILENT  # shorter than a block


def test_the_distance_from_a_target() -> None:
    waves = torch.stack([sine(level)[None] for level in (1.0, 0.1)])
    made = rewards.load(["loudness"], ["loudness.target=-23.0103", "loudness.unit=rms"])
    found = rewards.score("loudness", made, waves, ["a", "b"], ABOUT * 2)
    assert found.tolist() == pytest.approx([-20.0, 0.0], abs=1e-3)


def test_silence_and_clipping_are_shares() -> None:
    wave = torch.cat([sine(0.5, seconds=2), torch.zeros(2 * RATE)]).expand(2, -1)[None]
    assert rewards.load(["sounding"])(wave, ["a"], ABOUT).item() == pytest.approx(0.5, abs=0.01)
    # |2 sin| > 1 a third of the time on each side of pi / 2: between 30 and 150 degrees
    clipped = rewards.load(["unclipped"])((2 * wave[..., : 2 * RATE] * 2).clamp(-1, 1), ["a"], ABOUT).item()
    assert clipped == pytest.approx(1 / 3, abs=0.01)
    assert rewards.load(["unclipped"])(wave, ["a"], ABOUT).item() == 1


@pytest.mark.parametrize("name", ["loudness", "sounding", "unclipped"])
def test_a_waveform_without_a_rate_is_refused_in_one_sentence(name: str) -> None:
    made = rewards.load([name])
    for about in (None, [{}], [{"rate": "fast"}]):
        with pytest.raises(RewardError, match="needs the rate of its waveforms"):
            made(torch.zeros(1, 1, 100), ["a"], about)
        with pytest.raises(ValueError, match="scores sounds, and these samples have no rate: use a model of sound"):
            rewards.refuse(made, ["a"], about)
    with pytest.raises(RewardError, match=r"needs waveforms of shape \[B, C, T\], not \[1, 3, 8, 8\]"):
        made(torch.zeros(1, 3, 8, 8), ["a"], ABOUT)
    with pytest.raises(RewardError, match=r"needs the rate of its waveforms"):
        made(torch.zeros(2, 1, 100), ["a", "b"], [{"rate": 8000}, {"rate": 16_000}])


def test_bad_options_are_refused() -> None:
    with pytest.raises(ValueError, match="target must be between -70 and 0"):
        rewards.load(["loudness"], ["loudness.target=3"])
    with pytest.raises(RewardError, match=r"LUFS needs a rate of at least 8,000 Hz, not 800: set loudness.unit=rms"):
        rewards.load(["loudness"])(torch.zeros(1, 1, 800), ["a"], [{"rate": 800}])


@pytest.mark.skipif(find_spec("librosa") is not None, reason="librosa is there")
def test_tempo_without_its_library_says_what_to_install() -> None:
    with pytest.raises(ValueError, match=r"needs librosa: pip install 'flowward\[sound\]'"):
        rewards.load(["tempo"])


def clicks(bpm: float, rate: int = 22_050, seconds: float = 12.0) -> Tensor:
    found, noise = torch.zeros(int(seconds * rate)), torch.randn(200, generator=torch.Generator().manual_seed(0))
    for beat in range(int(seconds * bpm / 60)):
        at = round(beat * 60 / bpm * rate)
        found[at : at + 200] = 0.3 * (noise * torch.linspace(1, 0, 200))[: len(found) - at]
    return found[None]


@pytest.mark.skipif(find_spec("librosa") is None, reason="needs librosa")
def test_clicks_of_known_tempo() -> None:
    for bpm in (90.0, 120.0, 150.0):
        assert beats(clicks(bpm), 22_050) == pytest.approx(bpm, rel=0.03)
    wave, about = clicks(120.0)[None], [{"rate": 22_050, "bpm": 60}]
    assert Tempo()(wave, ["a"], about).item() == pytest.approx(-1, abs=0.05)
    assert Tempo(octaves=False)(wave, ["a"], about).item() == pytest.approx(0, abs=0.05)
    assert Tempo(bpm=120)(wave, ["a"], about).item() == pytest.approx(0, abs=0.05)
    assert Tempo(bpm=120)(torch.zeros(1, 1, 22_050), ["a"], about).item() == -1
    with pytest.raises(ValueError, match="'a' has no tempo: give `bpm` in its metadata"):
        rewards.refuse(Tempo(), ["a"], [{"rate": 22_050}])


def tiny_clap(folder: Path, **audio: Any) -> str:
    config = transformers.ClapConfig(
        text_config={
            "vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "max_position_embeddings": 40, "pad_token_id": 0,
        },
        audio_config={
            "num_mel_bins": 16, "spec_size": 64, "patch_size": 4, "patch_stride": [4, 4], "patch_embeds_hidden_size": 8,
            "depths": [1, 1], "num_attention_heads": [2, 2], "hidden_size": 16, "window_size": 4, **audio,
        },
        projection_dim=16, hidden_size=16,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.ClapModel(config).save_pretrained(folder)
    tiny.tokenizer(24).save_pretrained(folder)
    transformers.ClapFeatureExtractor(
        feature_size=16, sampling_rate=8000, hop_length=200, max_length_s=2, fft_window_size=256, frequency_max=4000
    ).save_pretrained(folder)
    return str(folder)


def test_clap_is_transformers_own_cosine_averaged_over_windows(tmp_path: Path) -> None:
    made: Any = rewards.load(["clap"], [f"clap.model={tiny_clap(tmp_path)}"])
    waves = 0.1 * torch.randn(2, 2, 4 * 8000, generator=torch.Generator().manual_seed(0))
    prompts, about = ["a red dog", "two cat"], [{"rate": 8000}] * 2
    found = made(waves, prompts, about)
    network, extractor = transformers.ClapModel.from_pretrained(tmp_path).eval(), made._clap.extractor
    words = tiny.tokenizer(24)(prompts, padding="max_length", max_length=24, return_tensors="pt")
    expected = torch.zeros(2)
    with torch.no_grad():
        text = network.get_text_features(input_ids=words.input_ids, attention_mask=words.attention_mask)
        text = torch.nn.functional.normalize(getattr(text, "pooler_output", text), dim=-1)
        for half in waves.mean(1).split(16_000, -1):
            seen = extractor(
                [each.numpy() for each in half], sampling_rate=8000, truncation="rand_trunc", return_tensors="pt"
            )
            heard = network.get_audio_features(input_features=seen.input_features)
            heard = torch.nn.functional.normalize(getattr(heard, "pooler_output", heard), dim=-1)
            expected += (heard * text).sum(-1) / 2
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert made._clap.sounds(waves[..., :9000], 8000, 4).shape[1] == 1  # shorter than a window
    assert made._clap.sounds(waves[..., :17_000], 8000, 4).shape[1] == 2
    one = made(waves[:1], prompts[:1], about[:1])
    torch.testing.assert_close(one, found[:1], rtol=0, atol=1e-6)


def test_other_models_are_no_clap(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a fused CLAP takes pieces of a sound at random"):
        rewards.load(["clap"], [f"clap.model={tiny_clap(tmp_path / 'fused', enable_fusion=True)}"])
    transformers.T5Config().save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="is not a CLAP model, but of type t5"):
        rewards.load(["clap"], [f"clap.model={tmp_path / 't5'}"])
