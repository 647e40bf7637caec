"""Models of sound beside their pipelines: waveforms, lengths, lyrics, guidance, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import tiny
from tiny_policies import policy
from tiny_sound import SOUND

from flowward import fit, models, policies
from flowward.cli import main
from flowward.export import weights
from flowward.models import Loading
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.families.ace_step import parts
from flowward.process import sound
from flowward.rewards.sound.levels import Sounding
from flowward.verify import model

ARGUMENT = {"StableAudio3Pipeline": "duration", "AceStepPipeline": "audio_duration",
            "LongCatAudioDiTPipeline": "audio_duration_s"}  # fmt: skip


@pytest.mark.parametrize("name", SOUND)
def test_a_waveform_is_the_pipeline_s(name: str) -> None:
    one = policy(name)
    x = torch.randn(1, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    found = one.decode(model.drawn(one, ["a red dog"], x, 1.0, "reference"))
    given = x if name == "StableAudio3Pipeline" else x.transpose(1, 2)
    pipe, shipped = one.family.pipe, one.family.pipe.scheduler
    expected = pipe(prompt=["a red dog"], num_inference_steps=model.STEPS, guidance_scale=1.0, latents=given,
                    output_type="pt", return_dict=False, **{ARGUMENT[name]: 1.0})[0]  # fmt: skip
    assert pipe.scheduler is shipped
    torch.testing.assert_close(found, expected.clamp(-1, 1), rtol=0, atol=1e-4)
    assert found.shape[1:] == one.medium.shape and one.medium.noun == "sounds"


@pytest.mark.parametrize("name", SOUND)
@pytest.mark.parametrize("seconds", [0.93, 2.0])
def test_a_sound_is_as_long_as_the_pipeline_makes_it(name: str, seconds: float) -> None:
    pipe = tiny(name)
    family = FAMILIES[name](pipe, seconds=seconds)
    made = pipe(prompt=["a"], num_inference_steps=1, guidance_scale=1.0, output_type="pt", return_dict=False,
                **{ARGUMENT[name]: seconds})[0]  # fmt: skip
    assert family.medium.shape == made.shape[1:]
    assert list(family.sized_by()) == [ARGUMENT[name]]


@pytest.mark.parametrize("name", SOUND)
def test_what_sound_has_not_is_refused(name: str) -> None:
    kind, pipe = FAMILIES[name], tiny(name)
    for given in ({"height": 32, "width": 32}, {"frames": 5}):
        with pytest.raises(ValueError, match=f"{name} makes sound, which has no size and no frames: give --seconds"):
            kind(pipe, **given)
    with pytest.raises(ValueError, match=f"{name} makes sounds of at"):
        kind(pipe, seconds=float("nan"))
    for other in ("StableDiffusion3Pipeline", "WanPipeline"):
        with pytest.raises(ValueError, match=f"{other} makes no sound: leave out --seconds"):
            FAMILIES[other](tiny(other), 32, 32, seconds=1.0)


def test_sounds_that_are_too_long_or_too_short_are_refused() -> None:
    for name, most in (("StableAudio3Pipeline", 8), ("LongCatAudioDiTPipeline", 30)):
        with pytest.raises(ValueError, match=f"{name} makes sounds of at most {most} seconds, not 31"):
            FAMILIES[name](tiny(name), seconds=31)
    with pytest.raises(ValueError, match=r"makes sounds of at least 0.04 s, not 0.01"):
        FAMILIES["LongCatAudioDiTPipeline"](tiny("LongCatAudioDiTPipeline"), seconds=0.01)
    for seconds in (0.0, -1.0, 1e9):
        with pytest.raises(ValueError, match="seconds must be above 0 and at most 36,000"):
            Loading(seconds=seconds)


def test_a_model_whose_autoencoder_has_no_rate_is_refused() -> None:
    pipe = tiny("AceStepPipeline")
    pipe.vae.register_to_config(sampling_rate=None)
    with pytest.raises(ValueError, match="a waveform needs its rate"):
        FAMILIES["AceStepPipeline"](pipe, seconds=1.0).medium  # noqa: B018


def test_lyrics_begin_at_the_first_part_in_brackets() -> None:
    assert parts("calm piano") == ("calm piano", "")
    assert parts("pop, female voice\n[verse]\nla la\n\n[chorus]\noh") == (
        "pop, female voice",
        "[verse]\nla la\n\n[chorus]\noh",
    )
    assert parts("a [loud] bell") == ("a [loud] bell", "")
    one = policy("AceStepPipeline")
    rows = [one.encode([text]).tensors["words"] for text in ("a cat", "a cat\n[verse]\na dog", "a cat\n[verse]\na cat")]
    assert rows[0].shape[1] < rows[1].shape[1] and not torch.equal(rows[1], rows[2])


def test_ace_step_turbo_is_distilled_and_has_no_guidance() -> None:
    def turbo() -> Any:
        pipe = tiny("AceStepPipeline")
        pipe.is_turbo = True
        return pipe

    one = DiffusersPolicy("t", FAMILIES["AceStepPipeline"](turbo(), seconds=1.0), None, "float32")
    assert [sign.sure for sign in one.distilled()] == ["certain"] and "is_turbo" in str(one.distilled()[0])
    with pytest.raises(ValueError, match="has no guidance"):
        one.under("policy", 3.0)
    assert policy("AceStepPipeline").distilled() == ()


def test_stable_audio_that_adds_noise_is_distilled() -> None:
    pipe = tiny("StableAudio3Pipeline")
    pipe.scheduler.register_to_config(stochastic_sampling=True)
    one = DiffusersPolicy("s", FAMILIES["StableAudio3Pipeline"](pipe, seconds=1.0), None, "float32")
    assert "stochastic_sampling" in str(one.distilled()[0])
    assert one.family.scheduler().config.stochastic_sampling is False


@pytest.mark.parametrize("name", SOUND)
def test_guidance_of_prompts_of_any_length_together(name: str) -> None:
    """The empty prompt beside each of them, padded as they are."""
    one = policy(name)
    texts = ["a", "a photo of two dog on the left of a red cat"]
    x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        both = one.under("policy", 3.0)(x, t, one.encode(texts))
        alone = [one.under("policy", 3.0)(x[k : k + 1], t[k : k + 1], one.encode(texts[k : k + 1])) for k in (0, 1)]
    torch.testing.assert_close(both, torch.cat(alone), rtol=0, atol=1e-5)


def test_a_mask_is_there_again_when_a_block_is_run_again() -> None:
    """Gradient checkpointing gives the gradients that there are without it, for prompts of two lengths."""
    found = []
    for kept in (True, False):
        one = policy("AceStepPipeline")
        if not kept:
            one.family.pipe.transformer.enable_gradient_checkpointing()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for tensor in one.weights.tensors("policy").values():
                tensor.data.normal_(std=0.1)
        x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(1)), torch.tensor([0.3, 0.8])
        first = one.velocity(x, t, one.encode(["a", "a photo of two dog on the left"])).square().mean()
        one.velocity(x, t, one.encode(["a photo of a cat", "dog"]))  # other masks, before the backward pass
        first.backward()
        found.append([each.grad for each in one.weights.tensors("policy").values()])
    assert sum(float(each.abs().sum()) for each in found[0]) > 0
    for exact, again in zip(*found, strict=True):
        torch.testing.assert_close(again, exact, rtol=1e-4, atol=1e-7)


def test_prompts_of_another_length_are_encoded_anew(tmp_path: Path) -> None:
    """The length is part of ACE-Step's text, so the cache of prompts keeps lengths apart."""
    for seconds in (1.0, 2.0, 1.0):
        family = FAMILIES["AceStepPipeline"](tiny("AceStepPipeline"), seconds=seconds)
        DiffusersPolicy("a", family, None, "float32").prepare(["a cat"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_sample_writes_a_wav_file_per_sound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny("LongCatAudioDiTPipeline").save_pretrained(tmp_path / "model")
    words = ["sample", str(tmp_path / "model"), "a dog", "--count", "2", "--seconds", "1", "--steps", "2",
             "--precision", "float32", "--output", str(tmp_path / "x.png")]  # fmt: skip
    assert main(words) == 0
    assert f"2 sounds of {tmp_path / 'model'}: {tmp_path / 'x.png'}, {tmp_path / 'x.1.wav'} to x.2.wav" in (
        capsys.readouterr().out.replace("\n", " ")
    )
    for number in (1, 2):
        waveform, rate = sound.read((tmp_path / f"x.{number}.wav").read_bytes())
        assert waveform.shape == (1, 200) and rate == 200
    (tmp_path / "x.png").unlink()
    assert main(words) == 2 and "x.1.wav exists" in capsys.readouterr().err
    assert main([*words, "--size", "32", "32", "--overwrite"]) == 2
    assert "makes sound, which has no size" in capsys.readouterr().err


def test_a_folder_of_sound_is_loaded_with_its_length(tmp_path: Path) -> None:
    tiny("StableAudio3Pipeline").save_pretrained(tmp_path)
    one = models.load(str(tmp_path), 2, "float32", loading=Loading(seconds=1.5, device="cpu"))
    assert one.medium.shape == (2, 1200) and one.arguments(2.0) == {"duration": 1.5, "guidance_scale": 2.0}


class Tone(torch.nn.Module):
    """A velocity for waveforms of any shape."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Any, t: Any) -> Any:
        return self.scale * x


def test_a_module_of_your_own_may_make_waveforms() -> None:
    made = policies.of(Tone(), (2, 400), rate=8000)
    assert made.medium.noun == "sounds" and made.medium.facts == {"rate": 8000}
    run = fit("advantageflow", made, Sounding(), ["a", "b"], iterations=1, images_per_update=4, group_size=2)
    assert run.metrics[-1]["sounds"] == 4 and run.metrics[-1]["reward"] == 1
    assert made.medium.heard(torch.zeros(1, 2, 400))[0][:4] == b"RIFF"
    with pytest.raises(ValueError, match=r"a waveform has the shape \(channels, time\), not \(400,\)"):
        policies.of(Tone(), (400,), rate=8000)
    with pytest.raises(ValueError, match="a waveform needs its rate"):
        policies.of(Tone(), (1, 400), rate=0)


@pytest.mark.parametrize("name", ["StableAudio3Pipeline", "LongCatAudioDiTPipeline"])
def test_the_lines_of_a_card_let_diffusers_load_adapters(name: str, tmp_path: Path) -> None:
    """Their transformers lack diffusers' methods for adapters."""
    one = policy(name)
    for tensor in one.weights.tensors("policy").values():
        tensor.data.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    weights.lora(one, tmp_path)
    pipe = tiny(name)
    pipe.text_encoder = one.family.pipe.text_encoder  # transformers does not make UMT5 twice alike
    assert not hasattr(pipe.transformer, "load_lora_adapter")
    exec("\n".join(one.lora_first), {"pipe": pipe})
    pipe.transformer.load_lora_adapter(tmp_path, use_safetensors=True)
    other = FAMILIES[name](pipe, seconds=1.0)
    x = torch.randn(1, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    found = model.drawn(one, ["a cat"], x, 1.0)
    torch.testing.assert_close(other.reference(["a cat"], x, model.STEPS, 1.0), found, rtol=0, atol=1e-4)
    assert (found - model.drawn(one, ["a cat"], x, 1.0, "reference")).abs().max() > 1e-3
