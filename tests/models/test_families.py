"""Every family of models, held to its pipeline in diffusers on a tiny one with random weights."""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_pipelines import FRAMES, TINY, halved, schedule, small, tiny
from tiny_policies import policy
from torch import Tensor

from flowward.export import weights as export
from flowward.models import diffusers
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.process.policy import Condition
from flowward.verify import model

MULTIPLE = {"NucleusMoEImagePipeline": 24}  # text tokens, if only a multiple of some number is allowed


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_in_half_precision(name: str, tmp_path: Path) -> None:
    """As on a GPU: bf16 weights, adapters in float32 (small steps survive), velocities and images near float32's."""
    found = []
    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        pipe = tiny(name) if precision == "float32" else halved(tiny(name))
        family = FAMILIES[name](pipe, **small(name))
        one = DiffusersPolicy(name, family, 2, precision)  # type: ignore[arg-type]
        one.weights.add("old")
        adapters = [*one.weights.tensors("policy").values(), *one.weights.tensors("old").values()]
        assert {tensor.dtype for tensor in adapters} == {torch.float32}
        assert family.pipe.transformer.dtype == dtype
        x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
        texts = ["a cat", "two dog on the left"]
        v = one.under("policy", 2.0)(x, t, one.encode(model.asked_of(one, texts, tmp_path)))
        v.square().mean().backward()
        assert v.dtype == torch.float32
        gradients = [tensor.grad for tensor in adapters if tensor.grad is not None]  # the last text stream gets none
        assert 2 * len(gradients) > 0.8 * len(adapters) and all(grad.isfinite().all() for grad in gradients)
        images = one.decode(x)
        assert one.encode_images(images).dtype == images.dtype == torch.float32
        found.append((v.detach(), images))
    for exact, half in zip(*found, strict=True):
        assert (half - exact).norm() / exact.norm() < 0.05


def test_images_are_encoded_one_by_one_where_the_autoencoder_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures from files are on the CPU, and those of an iteration are too many for an autoencoder at once."""
    one, seen = policy("StableDiffusion3Pipeline"), []
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together = one.family.encode_images(2 * images - 1)
    torch.testing.assert_close(one.encode_images(images), together, rtol=0, atol=1e-5)

    def encode(images: Tensor) -> Tensor:
        seen.append((images.device.type, len(images)))
        return images

    monkeypatch.setattr(one.family, "encode_images", encode)
    monkeypatch.setattr(one, "_cast", nullcontext)
    one.device = torch.device("meta")  # a device that every machine has, and that mixes with no other
    one.encode_images(images)
    assert seen == [("meta", 1)] * 3


def test_two_transformers_that_share_the_work_by_time(tmp_path: Path) -> None:
    """Wan 2.2-A14B is what its pipeline is, both are trained and exported, and a batch may hold times of either."""
    family: Any = FAMILIES["WanPipeline"](tiny("of two"), 32, 32, frames=5)
    one = DiffusersPolicy("two", family, 2, "float32")
    x, t = torch.randn(4, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.9, 0.2, 1, 0])
    condition = one.encode(["a cat", "a dog", "a cat", "two"])
    mixed = one.velocity(x, t, condition)
    alone = torch.cat([one.velocity(x[k : k + 1], t[k : k + 1], condition[k : k + 1]) for k in range(4)])
    torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-5)
    mixed.square().mean().backward()
    touched = {name.split(".")[0] for name, tensor in one.weights.tensors("policy").items() if tensor.grad is not None}
    assert touched == {"transformer", "transformer_2"}
    assert export.lora(one, tmp_path) == tmp_path / export.LORA_FILE
    assert (tmp_path / "transformer_2" / export.LORA_FILE).is_file()
    assert not [f"{check.law}: {check.measured}" for check in model.laws(one) if not check.holds]


def test_every_family_has_a_tiny_pipeline() -> None:
    assert TINY.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_what_its_pipeline_is(name: str) -> None:
    broken = [f"{check.law}: {check.measured}" for check in model.laws(policy(name)) if not check.holds]
    assert not broken


@pytest.mark.parametrize("frames", [4, 0])
@pytest.mark.parametrize("name", FRAMES)
def test_a_video_has_one_frame_more_than_a_multiple_of_a_number(name: str, frames: int) -> None:
    with pytest.raises(ValueError, match=f"must be 1 plus a multiple of .*, not {frames}"):
        FAMILIES[name](tiny(name), 32, 32, frames)


@pytest.mark.parametrize(
    "name", ["StableDiffusion3Pipeline", "ZImagePipeline", "AuraFlowPipeline", "Lumina2Pipeline", "WanPipeline"]
)
def test_an_image_larger_than_its_places_is_refused(name: str) -> None:
    """At once, not by an index out of its range in the first evaluation."""
    kind, pipe = FAMILIES[name], tiny(name)
    given = FRAMES.get(name, {})
    family = kind(pipe, 32, 32, **given)
    most, multiple = family.places, family.multiple
    assert most
    with pytest.raises(ValueError, match=f"the width .* must be at most {most * multiple} pixels"):
        kind(pipe, 32, (most + 1) * multiple, **given)
    one = DiffusersPolicy(name, kind(pipe, multiple, most * multiple, **given), 2, "float32")
    with torch.no_grad():
        assert one.velocity(torch.zeros(1, *one.latent_shape), torch.ones(1), one.encode(["a cat"])).isfinite().all()


def test_a_distilled_model_knows_no_guidance() -> None:
    """FLUX.2-klein says so itself; FLUX.1-schnell is the one without an input for it."""
    klein, schnell = tiny("Flux2KleinPipeline"), tiny("FluxPipeline")
    klein.register_to_config(is_distilled=True)
    schnell.transformer.register_to_config(guidance_embeds=False)
    for pipe in (klein, schnell):
        family = FAMILIES[type(pipe).__name__]
        with pytest.raises(ValueError, match="has no guidance"):
            DiffusersPolicy("distilled", family(pipe, 32, 32), None, "float32").under("policy", 3.0)
        assert family(tiny(type(pipe).__name__), 32, 32).guidance in ("classifier-free", "embedded")


def test_guidance_that_costs_or_is_not_the_model_s_own_is_known() -> None:
    flux, sd3 = policy("FluxPipeline"), policy("StableDiffusion3Pipeline")
    assert [flux.evaluations(scale) for scale in (1.0, 3.5)] == [1, 1]
    assert [sd3.evaluations(scale) for scale in (1.0, 3.5)] == [1, 2]
    assert "was published with guidance 3.5; you use 1" in (flux.remark(1.0) or "")
    assert "was published with guidance 2.5; you use 3.5" in (policy("FluxKontextPipeline").remark(3.5) or "")
    assert flux.remark(3.5) is sd3.remark(1.0) is sd3.remark(4.5) is None
    schnell = tiny("FluxPipeline")
    schnell.transformer.register_to_config(guidance_embeds=False)
    assert DiffusersPolicy("schnell", FAMILIES["FluxPipeline"](schnell, 32, 32), 2, "float32").remark(1.0) is None


def test_shorter_text_is_padded_with_zeros() -> None:
    """Rows of two encodings stand together, whatever their lengths."""
    one, other = Condition({"words": torch.ones(1, 2, 3)}), Condition({"words": torch.ones(2, 4, 3)})
    both = one.cat(other).tensors["words"]
    assert both.shape == (3, 4, 3)
    assert both[0].sum(-1).tolist() == [3, 3, 0, 0]
    torch.testing.assert_close(other.cat(one).tensors["words"][2], both[0])


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_as_long_as_the_pipeline_takes_it(name: str) -> None:
    called = inspect.signature(type(tiny(name)).__call__).parameters
    named = called.keys() & {"max_sequence_length", "max_text_length"}
    if not named:
        assert FAMILIES[name].fixed_text
        return
    (default,) = (called[each].default for each in named)
    assert FAMILIES[name].text_tokens == (tiny(name).default_max_sequence_length if default is None else default)


@pytest.mark.parametrize(
    "name",
    [
        "StableDiffusion3Pipeline",
        "FluxPipeline",
        "FluxKontextPipeline",
        "QwenImagePipeline",
        "ChromaPipeline",
        "OvisImagePipeline",
        "BriaPipeline",
    ],
)
def test_text_longer_than_the_pipeline_reads_is_refused(name: str) -> None:
    """Before a training whose result the pipeline could not draw again."""
    most, pipe = FAMILIES[name].most_text, tiny(name)
    assert most is not None and FAMILIES[name](pipe, 32, 32, text_tokens=most).text_tokens == most
    with pytest.raises(ValueError, match=f"{name} reads at most {most} text tokens, not {most + 1}"):
        FAMILIES[name](pipe, 32, 32, text_tokens=most + 1)
    with pytest.raises(ValueError, match=f"greater than {most}"):
        pipe(prompt="a cat", max_sequence_length=most + 1)


def test_text_longer_than_z_image_has_places_for_is_refused() -> None:
    """At once, not by an index out of its range in the first rollout; as much as it has places for is drawn."""
    pipe = tiny("ZImagePipeline")
    pipe.transformer.config["axes_lens"][0] = pipe.transformer.rope_embedder.axes_lens[0] = 600
    with pytest.raises(ValueError, match="reads at most 576 text tokens, not 577"):
        FAMILIES["ZImagePipeline"](pipe, 32, 32, text_tokens=577)
    one = DiffusersPolicy("z", FAMILIES["ZImagePipeline"](pipe, 32, 32, text_tokens=576), 2, "float32")
    with torch.no_grad():
        condition = one.encode(["dog " * 600])
        assert condition.tensors["words"].shape[1] == 576
        assert one.velocity(torch.zeros(1, *one.latent_shape), torch.ones(1), condition).isfinite().all()


@pytest.mark.parametrize("name", ["WanPipeline", "SkyReelsV2Pipeline", "SanaVideoPipeline"])
def test_a_video_longer_than_its_places_is_refused(name: str) -> None:
    pipe = tiny(name)
    most = 1 + 4 * (pipe.transformer.config.rope_max_seq_len - 1)
    with pytest.raises(ValueError, match=f"at most {most} frames, not {most + 4}"):
        FAMILIES[name](pipe, 32, 32, most + 4)
    one = DiffusersPolicy(name, FAMILIES[name](pipe, 16, 16, most), 2, "float32")
    with torch.no_grad():
        assert one.velocity(torch.zeros(1, *one.latent_shape), torch.ones(1), one.encode(["dog"])).isfinite().all()


@pytest.mark.parametrize("name", FAMILIES)
def test_text_is_cut_where_it_is_told_to_be(name: str, tmp_path: Path) -> None:
    if said := FAMILIES[name].fixed_text:  # texts with an image in them
        with pytest.raises(ValueError, match=f"reads {said}; leave out the text tokens option"):
            policy(name, text_tokens=20)
        return
    texts, one = ["a red cat " * 20], policy(name, text_tokens=MULTIPLE.get(name, 20))
    words = one.encode(model.asked_of(one, texts, tmp_path)).tensors["words"]
    # CLIP's tokens; a multiple of 16; the lyrics' header and the timbre; 144 tokens of an image, without 4 marks
    longer = {"StableDiffusion3Pipeline": 20 + 77, "CogView4Pipeline": 32, "AceStepPipeline": 20 + 11, **MULTIPLE}
    longer["HunyuanVideoImageToVideoPipeline"] = 20 + 144 - 4
    assert words.shape[1] == longer.get(name, 20)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_model_is_known_again_in_another_precision(name: str) -> None:
    pipe = tiny(name)
    for parameter in pipe.transformer.parameters():  # not numbers that bf16 has anyway
        parameter.data.add_(1e-3)
    first = diffusers.fingerprint(pipe.transformer)
    assert diffusers.fingerprint(pipe.transformer.to(torch.bfloat16)) == first
    next(pipe.transformer.parameters()).data.add_(0.5)
    assert diffusers.fingerprint(pipe.transformer) != first


def test_a_scheduler_without_a_shift_by_size_takes_other_times() -> None:
    """CogView4's and Bria's are still those of their pipelines."""
    for name in ("CogView4Pipeline", "BriaPipeline"):
        pipe = tiny(name)
        pipe.register_modules(scheduler=schedule(shift=3.0))
        one = DiffusersPolicy(name, FAMILIES[name](pipe, 32, 64), 2, "float32")
        x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
        found = model.drawn(one, ["a cat", "two dog"], x, 2.0)
        torch.testing.assert_close(found, one.family.reference(["a cat", "two dog"], x, 4, 2.0), rtol=0, atol=1e-4)


def test_a_scheduler_without_times_for_one_step_says_so() -> None:
    with pytest.raises(ValueError, match="scheduler of QwenImagePipeline does not support 1 step"):
        policy("QwenImagePipeline").times(1)
    assert policy("FluxPipeline").times(1) == (1.0, 0.0)
