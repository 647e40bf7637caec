"""What families of video models do beside the laws of all families: decoding, first frames, and bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from tiny_pipelines import FRAMES, tiny
from tiny_policies import policy
from tiny_video import hunyuan_i2v, hunyuan_video15, kandinsky5, wan_i2v_of_one_frame

from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.families.ltx import tokens
from flowward.models.families.video import most_likely
from flowward.prompts import Edit
from flowward.verify import model

FROM_TEXT = [name for name in FRAMES if not FAMILIES[name].sources[-1] and name != "AnyFlowPipeline"]
FROM_IMAGE = [name for name in FRAMES if FAMILIES[name].sources[-1]]
KEPT = [
    "LTXImageToVideoPipeline",
    "SanaImageToVideoPipeline",
    "Kandinsky5I2VPipeline",
    "HunyuanVideoImageToVideoPipeline",
]


def filled(pipe: Any) -> Any:
    """Layers that start at zero get numbers: they would hide everything."""
    pipe.set_progress_bar_config(disable=True)
    for parameter in pipe.transformer.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    return pipe


def broken(one: DiffusersPolicy) -> list[str]:
    return [f"{check.law}: {check.measured}" for check in model.laws(one) if not check.holds]


@pytest.mark.parametrize("name", FROM_TEXT)
def test_a_decoded_video_is_the_pipeline_s(name: str) -> None:
    one = policy(name, None)
    family: Any = one.family
    pipe = family.pipe
    x = torch.randn(1, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    guidance = one.family.guided_by(1.0)
    if name == "HunyuanVideo15Pipeline":
        pipe.guider.guidance_scale = 1.0
    pipe.scheduler = family.scheduler()
    carried = {"LTXPipeline": tokens, "Kandinsky5T2VPipeline": lambda x: family.pixels(x, {})}.get(name, torch.clone)
    given = {**family.sized_by(), **guidance, "latents": carried(x)}
    (video,) = pipe(prompt=["a cat"], num_inference_steps=2, output_type="pt", return_dict=False, **given)
    found = one.decode(family.reference(["a cat"], x, 2, 1.0))
    torch.testing.assert_close(found, video, rtol=0, atol=1e-4)


def test_ltx_with_a_decoder_that_has_a_time_decodes() -> None:
    """As from version 0.9.1 on; the pipeline's default time is 0."""
    one, seen = policy("LTXPipeline", None), []
    vae = one.family.pipe.vae
    vae.register_to_config(timestep_conditioning=True)
    real = vae.decode
    vae.decode = lambda z, t: seen.append(t) or real(z)
    assert one.decode(torch.zeros(2, *one.latent_shape)).shape == (2, 5, 3, 32, 32)
    assert seen[0].tolist() == [0, 0]


def test_wan_that_keeps_the_first_frame_is_its_pipeline() -> None:
    """2.2-5B: one time per token, and the source in the sample."""
    pipe = wan_i2v_of_one_frame()
    pipe.set_progress_bar_config(disable=True)
    torch.nn.init.normal_(pipe.transformer.proj_out.weight, std=0.2)
    assert not broken(DiffusersPolicy("5B", FAMILIES["WanImageToVideoPipeline"](pipe, 32, 32, 5), 2, "float32"))


@pytest.mark.parametrize("name", KEPT)
def test_a_kept_first_frame_is_reached_from_everywhere(name: str, tmp_path: Path) -> None:
    """At every time v leads to the source, whatever the network says: x - t v is its latent."""
    one = policy(name)
    condition = one.encode(model.asked_of(one, ["a cat", "a dog"], tmp_path))
    x, t = torch.randn(2, *one.latent_shape), torch.tensor([0.2, 0.9])
    with torch.no_grad():
        v = one.velocity(x, t, condition)
    end = (x - t[:, None, None, None, None] * v)[:, :, :1]
    torch.testing.assert_close(end, condition.tensors["source"], rtol=0, atol=1e-5)
    assert one.velocity(x, torch.zeros(2), condition).isfinite().all()


def test_hunyuan_video_without_an_input_for_guidance_is_guided_without_a_classifier() -> None:
    pipe = tiny("HunyuanVideoPipeline")
    config = {**pipe.transformer.config, "guidance_embeds": False, "_use_default_values": []}
    state = pipe.transformer.state_dict()
    pipe.register_modules(transformer=type(pipe.transformer).from_config(config))
    pipe.transformer.load_state_dict(state, strict=False)
    one = DiffusersPolicy("no input", FAMILIES["HunyuanVideoPipeline"](pipe, 32, 32, 5), 2, "float32")
    assert one.family.guidance == "classifier-free" and not broken(one)


@pytest.mark.parametrize("name", FROM_IMAGE)
def test_a_video_from_an_image_needs_one(name: str, tmp_path: Path) -> None:
    one, clip = policy(name, None), tmp_path / "clip.mp4"
    with pytest.raises(ValueError, match="source"):
        one.encode(["a cat"])
    clip.write_bytes(b"\0\0\0\x18ftypmp42")
    with pytest.raises(ValueError, match=r"clip.mp4 is not an image that can be read"):
        one.encode([Edit("a cat", clip)])
    with pytest.raises(ValueError, match=r"none.png"):
        one.encode([Edit("a cat", tmp_path / "none.png")])


def test_a_video_from_text_takes_no_source(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="source"):
        policy("LTXPipeline", None).encode([Edit("a cat", tmp_path / "none.png")])


def test_chronoedit_makes_five_frames() -> None:
    kind, pipe = FAMILIES["ChronoEditPipeline"], tiny("ChronoEditPipeline")
    assert kind(pipe, 32, 32).frames == 5
    with pytest.raises(ValueError, match="makes videos of 5 frames, not 9; leave out the option"):
        kind(pipe, 32, 32, 9)


def test_a_distilled_hunyuan_video_is_refused() -> None:
    pipe: Any = hunyuan_video15(True)
    pipe.transformer.register_to_config(use_meanflow=True)
    with pytest.raises(ValueError, match="is step-distilled: it has a second time"):
        FAMILIES["HunyuanVideo15ImageToVideoPipeline"](pipe, 32, 32, 5)


def test_kandinsky5_that_does_not_see_which_frames_are_given_is_its_pipeline() -> None:
    pipe = filled(kandinsky5(diffusers.Kandinsky5T2VPipeline, False))
    assert not broken(DiffusersPolicy("plain", FAMILIES["Kandinsky5T2VPipeline"](pipe, 32, 32, 5), 2, "float32"))


@pytest.mark.parametrize("name", ["Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"])
def test_kandinsky5_sees_what_its_pipeline_prepares(name: str, tmp_path: Path) -> None:
    """The source in the first frame, and which frames are given: the laws give the pipeline the family's own."""
    family: Any = policy(name, None).family
    (asked,) = model.asked_of(policy(name, None), ["a cat"], tmp_path)
    given = {"image": family.picture(asked)} if family.given else {}
    with most_likely(family.pipe.vae):
        seen = family.pipe.prepare_latents(
            batch_size=1, num_channels_latents=4, height=32, width=32, num_frames=family.frames, dtype=torch.float32,
            device=torch.device("cpu"), **given,
        )  # fmt: skip
    x = seen[..., :4].movedim(-1, 1)
    torch.testing.assert_close(family.pixels(x, {}), seen)
    if family.given:
        torch.testing.assert_close(x[:, :, :1], family.first_frames([asked]), rtol=0, atol=0.02)  # Pillow's rounding


def test_a_decoded_video_of_kandinsky5_from_an_image_is_the_pipeline_s(tmp_path: Path) -> None:
    """Which scales the first frames before it decodes; each video alone."""
    one = policy("Kandinsky5I2VPipeline", None)
    family: Any = one.family
    x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
    asked, scheduler = model.asked_of(one, ["a cat", "a dog"], tmp_path), family.scheduler()
    found = one.decode(family.reference(asked, x, 2, 1.0))
    x[:, :, :1] = family.first_frames(asked)
    for k, prompt in enumerate(asked):
        family.pipe.scheduler = scheduler
        given = {**family.sized_by(), "latents": family.pixels(x[k : k + 1], {}), "image": family.picture(prompt)}
        given |= {"prompt": [prompt.text], "num_inference_steps": 2, "guidance_scale": 1.0, "return_dict": False}
        (drawn,) = family.pipe(output_type="pt", **given)
        torch.testing.assert_close(found[k : k + 1], drawn, rtol=0, atol=1e-4)


def test_kandinsky5_with_too_few_frames_or_other_attention_is_refused() -> None:
    kind, pipe = FAMILIES["Kandinsky5I2VPipeline"], tiny("Kandinsky5I2VPipeline")
    with pytest.raises(ValueError, match="makes videos of at least 17 frames, not 13: it scales the first 4 latent"):
        kind(pipe, 32, 32, 13)
    pipe.transformer.register_to_config(attention_type="nabla")
    with pytest.raises(ValueError, match="Kandinsky5I2VPipeline with nabla attention, which skips parts"):
        kind(pipe, 32, 32, 17)


def test_hunyuan_video_from_an_image_without_an_input_for_guidance_has_a_black_picture_without_a_prompt() -> None:
    pipe = filled(hunyuan_i2v(embedded=False))
    one = DiffusersPolicy("no input", FAMILIES["HunyuanVideoImageToVideoPipeline"](pipe, 32, 32, 5), 2, "float32")
    assert one.family.guidance == "classifier-free" and not broken(one)


def test_hunyuan_video_with_the_image_as_more_channels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"only if its first frame is the image .*, not with latent_concat"):
        FAMILIES["HunyuanVideoImageToVideoPipeline"](hunyuan_i2v("latent_concat"), 32, 32, 5)


def test_mochi_needs_two_steps() -> None:
    with pytest.raises(ValueError, match="do not support 1 step; use at least 2"):
        policy("MochiPipeline", None).times(1)
