"""Families found by observation: the same as the written ones, and refused if the loop is not that of a flow."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from tiny_loops import NeedsMaskPipeline, Ways, loop
from tiny_pipelines import FRAMES, TINY, tiny
from tiny_sound import SOUND
from torch import Tensor

from flowward import models
from flowward.models import catalogue
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.observed import Observed, family_of
from flowward.prompts import Edit
from flowward.system import tables
from flowward.system.seeds import numpy_generator
from flowward.verify import model

NOT_COVERED = {  # pipelines with a written family that observation refuses, and what it says
    "AnyFlowPipeline": "its scheduler is FlowMapEulerDiscreteScheduler",  # a second time, the end of a jump
    "HunyuanVideo15Pipeline": "calls its transformer 2 times a step without guidance",  # a guider has the scale
    "MochiPipeline": "a scheduler whose times do not fall from 1 to 0",  # they rise
    "QwenImage21Pipeline": "an object that may have a state",  # a cache of keys and values
    "HunyuanVideo15ImageToVideoPipeline": "calls its transformer 2 times a step without guidance",
    "Kandinsky5I2IPipeline": "does not begin with the samples that it is given",  # the source is beside them
    "SanaImageToVideoPipeline": "does not begin with the samples that it is given",  # the first frame is the source
    "LTXImageToVideoPipeline": "cannot be called with a prompt alone: Provided `latents` tensor has shape",  # tokens
    "WanVACEPipeline": "cannot be called with a prompt alone: Passing a list of prompts is not yet supported",
    "BriaFiboEditPipeline": "cannot be called with a prompt alone: `prompt` has to be a valid edit JSON",
    "Kandinsky5T2VPipeline": "does not begin with the samples that it is given",  # zeros are beside them
    "Kandinsky5I2VPipeline": "needs more than a prompt: image",  # as above, and the first frame is the source
    "HunyuanVideoImageToVideoPipeline": "does not begin with the samples that it is given",  # a bit of the source
    "StableAudio3Pipeline": "observing it failed",  # sounds
    "AceStepPipeline": "joins the rows of its guidance in an unknown way",
    "LongCatAudioDiTPipeline": "a scheduler whose times do not fall from 1 to 0",
}
OTHER = {  # pipelines whose observed family is right, but not the written one's twin
    "QwenImageEditPlusPipeline": "observed, sources have a million pixels as in the pipeline: too slow for a test",
    "QwenImageEditPipeline": "as QwenImageEditPlusPipeline",
    "LongCatImageEditPipeline": "as QwenImageEditPlusPipeline",
    "Kandinsky5T2IPipeline": "makes pictures of fixed sizes, too large for a test",
    "HiDreamImagePipeline": "makes pictures of fixed sizes, too large for a test",
    "HunyuanSkyreelsImageToVideoPipeline": "draws the latents of a source at random; the written family takes the mean",
}
TEXTS = ("a red circle", "a photo of two green squares on the left of a dog", "a")
NEAR = 1e-5  # relative


def observed(name: str, pipe: Any = None, **more: Any) -> Observed:
    torch.set_num_threads(1)
    edits = name in FAMILIES and 0 not in FAMILIES[name].sources
    size = {} if name in SOUND else {"height": 32, "width": 32, **FRAMES.get(name, {})}
    return family_of(name, edits)(pipe or tiny(name), **{**size, **more})


class _Begun(Exception):
    """Ends a pipeline at its first step."""


def carried(written: Any, prompt: Any, x: Tensor) -> Tensor:
    """Samples of a written family [1, ...] as the pipeline gives them to its scheduler."""
    found: list[Tensor] = []
    scheduler = written.scheduler()

    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **more: Any) -> None:
        found.append(sample)
        raise _Begun

    scheduler.step = step
    with pytest.MonkeyPatch.context() as patch, pytest.raises(_Begun), torch.no_grad():
        patch.setattr(written, "scheduler", lambda: scheduler)
        written.reference([prompt], x, 2, 1.0)
    return found[0]


def apart(a: Tensor, b: Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def prompts(edits: bool, folder: Path) -> list[Any]:
    """Sources have the size of the samples: resized ones would be rounded in other ways."""
    if not edits:
        return list(TEXTS)
    found = []
    for k, text in enumerate(TEXTS):
        pixels = numpy_generator("twin", k).integers(0, 256, (32, 32, 3), dtype="uint8")
        Image.fromarray(pixels).save(path := folder / f"{k}.png")
        found.append(Edit(text, path))
    return found


@pytest.mark.parametrize("name", sorted(TINY))
def test_a_written_family_and_its_observed_twin_agree(name: str, tmp_path: Path) -> None:
    """Velocities at times of their own, guided ones, times, and pictures."""
    if name in OTHER:
        pytest.skip(OTHER[name])
    if name in NOT_COVERED:
        with pytest.raises(ValueError, match=NOT_COVERED[name]):
            observed(name)
        return
    given = FRAMES.get(name, {})
    family, twin = FAMILIES[name](tiny(name), 32, 32, **given), observed(name)
    one, other = (DiffusersPolicy(name, each, 2, "float32") for each in (family, twin))
    asked = prompts(0 not in family.sources, tmp_path)
    x = torch.randn(len(asked), *one.latent_shape, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.9, 0.3, 0.6])

    def moved(samples: Tensor) -> Tensor:
        rows = zip(asked, samples.split(1), strict=True)
        return twin.pictures.unpacked(torch.cat([carried(family, prompt, row) for prompt, row in rows]))

    y, scales = moved(x), [1.0] if family.guidance == "none" else [1.0, 3.5]
    assert twin.guidance == family.guidance and (0 in twin.sources) == (0 in family.sources)
    for scale in scales:
        with torch.no_grad():
            v = one.under("policy", scale)(x, t, one.encode(asked))
            assert apart(other.under("policy", scale)(y, t, other.encode(asked)), moved(v)) < NEAR
    for steps in (2, 5):
        assert other.times(steps) == pytest.approx(one.times(steps), abs=1e-6)
    assert apart(other.decode(y[:1]), one.decode(x[:1])) < NEAR
    assert twin.encode_images(twin.decode(y[:1])).shape == y[:1].shape


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "QwenImagePipeline", "ZImagePipeline", "WanPipeline"])
def test_an_observed_family_is_held_to_its_pipeline(name: str) -> None:
    """Two rows in one call, two calls, lists and videos."""
    one = DiffusersPolicy(name, observed(name), 2, "float32")
    assert not [f"{check.law}: {check.measured}" for check in model.laws(one) if not check.holds]


def test_an_observed_family_in_half_precision() -> None:
    """Rounded values are still understood; times stay exact."""
    v = []
    for dtype, precision in ((torch.float32, "float32"), (torch.bfloat16, "bf16")):
        name = "StableDiffusion3Pipeline"
        one = DiffusersPolicy(name, observed(name, tiny(name).to(dtype)), 2, precision)  # type: ignore[arg-type]
        x = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            v.append(one.under("policy", 2.0)(x, torch.tensor([0.3, 0.8]), one.encode(TEXTS[:2])))
    assert apart(v[1], v[0]) < 0.05


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no step": (lambda: loop(step=False), "does not call scheduler.step in its loop"),
    "two networks": (lambda: loop(second=True), "calls another network in its loop: other"),
    "inpainting": (lambda: loop(pasted=True), "changes its samples between steps"),
    "momentum": (lambda: loop(momentum=True), "guidance that depends on the step, or remembers earlier steps"),
    "squares": (lambda: loop(squared=True), "changes what its transformer returns by more than a choice of numbers"),
    "times": (lambda: loop(clocked=True), "follows the time in an unknown way: t"),
    "noise": (lambda: loop(diffusers.DDPMScheduler()), "predicts noise .* its scheduler is DDPMScheduler"),
    "epsilon": (lambda: loop(diffusers.DPMSolverMultistepScheduler()), "predicts noise .* DPMSolverMultistepScheduler"),
    "hidden": (lambda: loop(hidden=True), "gives other velocities than the observed convention"),
    "a mask": (lambda: NeedsMaskPipeline(Ways()), "needs more than a prompt: mask"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_loop_that_is_no_flow_is_refused(what: str) -> None:
    made, reason = REFUSED[what]
    with pytest.raises(ValueError, match="Pipeline has no written family") as refused:
        family_of("LoopPipeline")(made(), 32, 32)
    assert re.search(reason, str(refused.value))


def test_a_loop_that_nobody_has_written_is_found() -> None:
    """Its words have no mask, so rows of unequal length are evaluated apart; they are still those of a call alone."""
    family = family_of("LoopPipeline")(loop(), 32, 32)
    assert "1 t and returns v" in family.described() or "takes t and returns v" in family.described()
    assert family.guidance == "classifier-free" and family.shape == (4, 16, 16) and family.targets == ("to_q", "to_v")
    assert not family.notes
    _held_to_its_network(family)


def test_rows_that_change_each_other_are_evaluated_one_by_one() -> None:
    family = family_of("LoopPipeline")(loop(together=True), 32, 32)
    assert family.notes == ("rows of a batch change each other, so they are evaluated one by one, which is slower",)
    _held_to_its_network(family)


def _held_to_its_network(family: Observed) -> None:
    """Rows of two lengths, mixed."""
    texts = ("a cat", "a", "a dog", "b")
    rows = family.encode(list(texts))
    x, t = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.2, 0.5, 0.9, 0.7])
    both = family.velocity(family.pipe.transformer, x, t, rows, 1.0)
    for k, text in enumerate(texts):
        words = family.pipe.encode_prompt(text)
        torch.testing.assert_close(both[k : k + 1], family.pipe.transformer(x[k : k + 1], t[k : k + 1], words)[0])


def test_a_loop_without_guidance_has_none() -> None:
    assert family_of("LoopPipeline")(loop(guided=False), 32, 32).guidance == "none"


def test_observing_costs_few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows through the network: a handful at the start, and none for a prompt; the pipeline is as it was."""
    pipe = tiny("StableDiffusion3Pipeline")
    rows, usual, scheduler = [0], pipe.transformer.forward, pipe.scheduler

    def forward(hidden_states: Tensor, *args: Any, **more: Any) -> Any:
        rows[0] += len(hidden_states)
        return usual(hidden_states, *args, **more)

    monkeypatch.setattr(pipe.transformer, "forward", forward)
    family = observed("StableDiffusion3Pipeline", pipe)
    assert rows[0] <= 12
    start = rows[0]
    family.encode(list(TEXTS))
    family.times(7)
    assert rows[0] == start
    assert pipe.scheduler is scheduler and pipe.transformer.forward is forward
    assert not {"encode_prompt", "prepare_latents", "decode"} & {*vars(pipe), *vars(pipe.vae)}


def saved(folder: Path, kind: str, version: str = diffusers.__version__, **parts: Any) -> Path:
    named = {name: ["diffusers", each] for name, each in parts.items()}
    index = {"_class_name": kind, "_diffusers_version": version, **named}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.mark.parametrize(
    ("kind", "version", "parts", "said"),
    [
        ("StarPipeline", "99.1.0", {}, "made by diffusers 99.1.0; yours .* has no StarPipeline: pip install --upgrade"),
        ("StarPipeline", "0.1.0", {}, "pipeline 'StarPipeline'"),
        ("FluxFillPipelin", "0.1.0", {}, "did you mean"),
        (
            "FluxInpaintPipeline",
            "0.42.1",
            {},
            "cannot be trained: starts from a picture or clip that is changed in part",
        ),
        (
            "StableDiffusionPipeline",
            "0.42.1",
            {"unet": "UNet2DConditionModel"},
            "no `transformer`; its network is `unet`",
        ),
        (
            "DiTPipeline",
            "0.42.1",
            {"transformer": "DiTTransformer2DModel", "scheduler": "DDIMScheduler"},
            "predicts noise .* its scheduler is DDIMScheduler",
        ),
        ("LTX2Pipeline", "0.42.1", {"transformer": "a", "transformer_2": "b"}, "calls two transformers"),
    ],
)
def test_a_folder_that_cannot_be_observed_is_refused_at_once(
    kind: str, version: str, parts: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=said):
        models.load(str(saved(tmp_path, kind, version, **parts)), 2)


def test_observed_pipelines_have_a_tiny_one() -> None:
    """Each entry of the list is tested above, or by its own test, and is not written."""
    listed = {each["pipeline"] for each in tables.load(catalogue.HERE / "observed.yaml")}
    assert listed <= TINY.keys() and not listed & FAMILIES.keys()


def test_a_pipeline_in_a_folder_is_loaded_and_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line says what was found; after the text encoders are freed there are still prompts, times and guidance."""
    tiny("StableDiffusion3Pipeline").save_pretrained(tmp_path / "model")
    monkeypatch.delitem(FAMILIES, "StableDiffusion3Pipeline")
    one: Any = models.load(str(tmp_path / "model"), 2, "float32", loading=models.Loading(size=(32, 32), device="cpu"))
    said = capsys.readouterr().err
    assert "has no written family; observed: samples [4, 16, 16]" in said and "LoRA on attn.add_k_proj" in said
    x, t = torch.randn(3, *one.latent_shape), torch.tensor([0.2, 0.5, 0.9])
    before = one.under("policy", 3.0)(x, t, one.encode(TEXTS))
    one.prepare(TEXTS, tmp_path / "cache")
    assert one.family.pipe.text_encoder is None and len(one.times(6)) == 7
    torch.testing.assert_close(one.under("policy", 3.0)(x, t, one.encode(TEXTS)), before)
    with pytest.raises(ValueError, match="leave out --shard"):
        models.load(str(tmp_path / "model"), 2, layout=models.Layout(shard="all"))
