"""What was exported is the model that was trained, can be measured against its base, and says what it was made from."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_policies import policy

import flowward
from flowward import models
from flowward.algorithms.advantageflow import AdvantageFlow
from flowward.cli import main
from flowward.export import exported
from flowward.export import weights as export
from flowward.export.trained import load as policy_of
from flowward.models import Adapters
from flowward.models.loading import Loading
from flowward.models.lora import ATTENTION
from flowward.process.policy import Policy
from flowward.process.rollout import Sampler

ABOUT = {"algorithm": "awm", "reward": ["ocr"], "guidance": 2.0, "iterations": 1200, "weights": "ema"}
TRAIN = shlex.split(
    "--iterations 1 --images-per-update 8 --group-size 4 --microbatch 8 --learning-rate 1e-2 --warmup 0 "
    "--algorithm.rollout.steps 2 --reward balance --evaluation.images 6 --evaluation.sampler.steps 1 --threads 1"
)
EVAL = shlex.split("--images 8 --steps 1 --rewards balance --precision float32")
SMALL = Loading(size=(32, 32), device="cpu")


def changed(policy: Policy) -> Policy:
    with torch.no_grad():
        for number, tensor in enumerate(policy.weights.tensors("policy").values()):
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    return policy


def answer(policy: Policy, texts: list[str]) -> torch.Tensor:
    x = torch.randn(2, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    return policy.velocity(x, torch.tensor([0.3, 0.95]), policy.encode(texts)).detach()


@pytest.mark.parametrize("adapters", [None, Adapters(2), Adapters(2, alpha=1, targets=("to_q", "ff.net.2"))])
def test_merged_weights_are_the_policy(tiny: str, tmp_path: Path, adapters: Adapters | None) -> None:
    trained, texts = changed(models.load(tiny, precision="float32", adapters=adapters)), ["a circle", "two rings"]
    expected = answer(trained, texts)
    assert export.merged(trained, tmp_path, {"base_model": tiny, **ABOUT}) == tmp_path / "transformer"
    found = [policy_of(str(name), "policy", precision="float32") for name in (tmp_path, tmp_path / "transformer")]
    for each, name in zip(found, (tmp_path, tmp_path / "transformer"), strict=True):
        torch.testing.assert_close(answer(each, texts), expected, rtol=0, atol=1e-5)
        assert each.name == str(name) and exported.facts(str(name)) == {
            "version": flowward.__version__, "base_model": tiny, **ABOUT, "dtype": "float32"
        }  # fmt: skip
    base = models.load(tiny, precision="float32")
    assert not torch.allclose(answer(base, texts), expected, atol=1e-3)
    assert found[0].identity == base.identity  # it can be trained on from there, as its base can


@pytest.mark.parametrize("family", ["StableDiffusion3Pipeline", "of two"])
def test_so_they_are_for_pipelines(family: str, tmp_path: Path) -> None:
    """Also those of two transformers."""
    tiny_pipelines.tiny(family).save_pretrained(tmp_path / "base")
    loading, texts = SMALL if family != "of two" else Loading((32, 32), frames=5, device="cpu"), ["a cat", "dog"]
    trained = changed(models.load(str(tmp_path / "base"), None, "float32", loading=loading))
    expected = answer(trained, texts)
    export.merged(trained, tmp_path / "whole", {"base_model": str(tmp_path / "base")})
    found = policy_of(str(tmp_path / "whole"), "policy", loading, "float32")
    assert torch.equal(answer(found, texts), expected)


@pytest.mark.processor
def test_a_run_and_its_export_measure_alike(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = tmp_path / "run", tmp_path / "found.json"
    assert main(["train", "--model", tiny, *TRAIN, "--output", str(run)]) == 0
    assert main(["export", str(run)]) == 0
    capsys.readouterr()
    assert main(["eval", tiny, str(run), str(run / "export"), *EVAL, "--json", str(out)]) == 0
    said = capsys.readouterr()
    assert f"{run / 'export'}: made from {tiny} by advantageflow for balance, 1 iteration, weights policy" in said.err
    base, trained, again = json.loads(out.read_text())["models"].values()
    assert again["per_image"] == trained["per_image"] != base["per_image"]
    assert again["model"]["made_from"]["base_model"] == tiny and "made_from" not in base["model"]
    picture = str(tmp_path / "x.png")
    assert (
        main(["sample", str(run / "export"), "a circle", "--steps", "1", "--guidance", "2", "--output", picture]) == 0
    )
    assert "was trained on samples with guidance 1" in capsys.readouterr().err


@pytest.mark.processor
def test_adapters_say_it_too(tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With merged weights beside them, both can be measured: the folder stands for the adapters."""
    run, out = tmp_path / "run", tmp_path / "found.json"
    assert main(["train", "--model", tiny, *TRAIN, "--lora-rank", "2", "--output", str(run)]) == 0
    assert main(["export", str(run), "--merged", "--weights", "ema"]) == 0
    names = [str(run / "export"), str(run / "export" / "transformer")]
    assert main(["eval", *names, *EVAL, "--json", str(out)]) == 0
    assert (
        capsys.readouterr().err.count(f"made from {tiny} by advantageflow for balance, 1 iteration, weights ema") == 2
    )
    one, other = json.loads(out.read_text())["models"].values()
    assert other["model"]["made_from"] == {**one["model"]["made_from"], "dtype": "float32"}
    scores = [[float(score) for score in each["per_image"]["balance"].split()] for each in (one, other)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-3)


def test_what_is_not_whole_is_refused(tiny: str, tmp_path: Path) -> None:
    whole, facts = tmp_path / "whole", tmp_path / "whole" / exported.FACTS
    export.merged(models.load(tiny, precision="float32"), whole, {"base_model": tiny})

    def refused(says: str) -> None:
        with pytest.raises(ValueError, match=says):
            policy_of(str(whole), "policy", precision="float32")

    for file in (whole / "transformer").glob("*.safetensors"):
        kept = file.read_bytes()
        file.write_bytes(kept[: len(kept) // 2])
        refused("transformer cannot be loaded as weights of")
        file.unlink()
        refused("transformer cannot be loaded as weights of .*: .*Missing")
        file.write_bytes(kept)
    for text, says in (
        ("{", "cannot be read"),
        ("[]", "is damaged: it does not contain a JSON object"),
        ("{}", "does not name its base"),
    ):
        facts.write_text(text)
        refused(rf"{exported.FACTS} {says}")
    facts.write_text(json.dumps({"base_model": str(tmp_path / "gone.x")}))
    refused("there is no file or folder .*gone")
    shutil.rmtree(whole / "transformer")
    refused("holds trained weights of .* without the rest of its pipeline")  # the file alone is no model


@pytest.mark.parametrize(("rank", "variant"), [(None, None), (2, "fp16")])
def test_a_pipeline_is_exported_with_its_size_and_its_base(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    rank: int | None,
    variant: str | None,
) -> None:
    """An export is drawn at the size of the training unless another is named, from its files, and on no other base."""
    monkeypatch.setattr("flowward.models.diffusers.CACHE", tmp_path / "cache")
    base, run, texts = tmp_path / "base", tmp_path / "run", tmp_path / "texts.txt"
    tiny_pipelines.tiny("StableDiffusion3Pipeline").save_pretrained(base)
    tiny_pipelines.tiny("StableDiffusion3Pipeline").to(torch.float16).save_pretrained(base, variant="fp16")
    texts.write_text("a cat\ndog\n")
    words = f"""train --model {str(base)!r} {"" if variant is None else f"--variant {variant}"} --size 16 64
        --text-tokens 20
        --prompts {str(texts)!r} --evaluation.prompts {str(texts)!r}
        {"" if rank is None else "--lora-rank 2"} --device cpu --precision float32 --reward jpeg-compressibility
        --evaluation.images 2 --evaluation.sampler.steps 1 --algorithm.rollout.steps 2 --images-per-update 4
        --group-size 2 --microbatch 4 --iterations 1 --output {str(run)!r}"""
    assert main(shlex.split(words)) == 0
    assert main(["export", str(run)]) == 0
    name = str(run / "export")
    found, trained = policy_of(name, "policy", precision="float32"), policy_of(str(run), "policy")
    assert found.image_size == trained.image_size == (16, 64)
    torch.testing.assert_close(answer(found, ["a cat", "dog"]), answer(trained, ["a cat", "dog"]))
    assert policy_of(name, "policy", SMALL, "float32").image_size == (32, 32)
    chosen = "" if variant is None else f', variant="{variant}"'
    assert f'from_pretrained("{base}"{chosen})' in (run / "export" / "README.md").read_text("utf-8")
    if variant is None:  # the same weights, less exactly
        assert policy_of(name, "policy", Loading(variant="fp16", device="cpu"), "float32").image_size == (16, 64)
    capsys.readouterr()
    assert main(["sample", str(run), "a cat", "--size", "32", "32", "--output", str(tmp_path / "a.png")]) == 2
    assert "was trained with size 16 64, not 32 32; leave out the option" in capsys.readouterr().err
    tiny_pipelines.tiny("StableDiffusion3Pipeline", seed=1).save_pretrained(base, variant=variant)
    with pytest.raises(ValueError, match=f"trained on another version of {base}: use"):
        policy_of(name, "policy", precision="float32")


def test_a_run_from_python_keeps_how_its_model_was_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flowward.models.diffusers.CACHE", tmp_path / "cache")
    tiny_pipelines.tiny("StableDiffusion3Pipeline").save_pretrained(tmp_path / "base")
    (tmp_path / "texts.txt").write_text("a cat\ndog\n")
    loading = Loading(size=(16, 64), text_tokens=20, device="cpu")
    policy = models.load(str(tmp_path / "base"), 2, "float32", loading=loading)
    run = flowward.Run(iterations=1, images_per_update=4, group_size=2, microbatch=4, output=tmp_path / "run")
    reward, texts = flowward.rewards.load("jpeg-compressibility"), flowward.prompts.load(str(tmp_path / "texts.txt"))
    list(flowward.train(AdvantageFlow(rollout=Sampler(1)), policy, reward, texts, run))
    found = policy_of(str(tmp_path / "run"), "policy")
    assert found.image_size == (16, 64) and found.loading == loading


def test_equal_weights_give_equal_files(tmp_path: Path) -> None:
    """Sets and the entries of a header have no order of their own."""
    files = []
    for number in range(4):
        one = policy("StableDiffusion3Pipeline", Adapters(2, alpha=3))
        files.append(export.lora(one, tmp_path / str(number), ABOUT).read_bytes())
    assert len({*files}) == 1
    with safe_open(tmp_path / "0" / models.LORA_FILE, "pt") as opened:
        header = opened.metadata()
    assert {*header} == {"format", "flowward", "lora_adapter_metadata"}
    described = json.loads(header["lora_adapter_metadata"])
    assert described["transformer.target_modules"] == sorted(ATTENTION) and described["transformer.lora_alpha"] == 3
    assert json.loads(header["flowward"])["algorithm"] == "awm"
    found = load_file(tmp_path / "0" / models.LORA_FILE)
    assert {name.removeprefix("transformer."): each.shape for name, each in found.items()} == {
        name: each.shape for name, each in one.weights.tensors("policy").items()
    }


def test_a_set_in_a_header_is_sorted() -> None:
    """Its order is another one in another process."""
    assert export._in_order({"a": {"c", "b", "a"}, "b": 1}) == {"a": ["a", "b", "c"], "b": 1}
