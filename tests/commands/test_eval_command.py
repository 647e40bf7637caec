"""`flowward eval`: what it takes for a model, what it writes, what it refuses, and its page."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import pytest
import tiny_pipelines
import torch
from measurements import made

from flowward import models
from flowward.cli import main
from flowward.evaluation import measurement
from flowward.evaluation.comparison import differences
from flowward.evaluation.images import thumbnails
from flowward.export import exported
from flowward.export import weights as export
from flowward.export.trained import load as policy_of
from flowward.models.loading import Loading
from flowward.pages import evaluation as evaluation_page
from flowward.training import log

HOW = ["--images", "8", "--steps", "1", "--batch", "5"]


def said(capsys: pytest.CaptureFixture[str], *words: str | Path, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["eval", *map(str, words)]) == code
    found = capsys.readouterr()
    return " ".join((found.out if code == 0 else found.err).split())


@pytest.fixture(scope="module")
def lora(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported LoRA whose images differ from those of its base."""
    policy = models.load(tiny, 2, "float32")
    with torch.no_grad():
        for number, tensor in enumerate(policy.weights.tensors("policy").values()):
            tensor.copy_(torch.randn(tensor.shape, generator=torch.Generator().manual_seed(number)))
    folder = tmp_path_factory.mktemp("export")
    export.lora(policy, folder, {"base_model": tiny, "guidance": 1.0})
    return folder


def test_an_exported_lora_is_its_base_with_adapters(tiny: str, lora: Path) -> None:
    file = lora / models.LORA_FILE
    found = [policy_of(str(name), "policy", precision="float32") for name in (lora, file)]
    base = models.load(tiny, precision="float32")
    x, t = torch.randn(2, *base.latent_shape), torch.tensor([0.3, 0.8])
    values = [each.velocity(x, t, each.encode(["a circle", "two rings"])).detach() for each in (*found, base)]
    assert torch.equal(values[0], values[1]) and not torch.allclose(values[0], values[2], atol=1e-3)
    trained = models.load(tiny, 2, "float32")
    trained.weights.load("policy", found[0].weights.tensors("policy"))
    assert torch.equal(trained.velocity(x, t, trained.encode(["a circle", "two rings"])).detach(), values[0])
    assert found[0].identity["base"] == base.identity["base"]


@pytest.mark.parametrize("family", ["StableDiffusion3Pipeline", "FluxPipeline"])
def test_an_exported_lora_of_a_pipeline(family: str, tmp_path: Path) -> None:
    tiny_pipelines.tiny(family).save_pretrained(tmp_path / "base")
    loading = Loading(size=(32, 32), device="cpu")
    trained = models.load(str(tmp_path / "base"), 2, "float32", loading=loading)
    with torch.no_grad():
        for tensor in trained.weights.tensors("policy").values():
            tensor.normal_()
    export.lora(trained, tmp_path / "lora", {"base_model": str(tmp_path / "base")})
    found = policy_of(str(tmp_path / "lora"), "policy", loading, "float32")
    for key, tensor in trained.weights.tensors("policy").items():
        assert torch.equal(found.weights.tensors("policy")[key], tensor)
    assert found.identity == trained.identity and found.name == str(tmp_path / "lora")


def test_adapters_of_others_are_refused(tiny: str, lora: Path, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    file = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=r"other\.safetensors does not name its base model"):
        policy_of(str(file), "policy")
    file.write_bytes(b"no")
    with pytest.raises(ValueError, match=r"other\.safetensors cannot be read"):
        policy_of(str(file), "policy")


def test_models_against_each_other(
    capsys: pytest.CaptureFixture[str], tiny: str, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one call, or from two files: the same differences; and the page holds every number."""
    monkeypatch.setenv("COLUMNS", "200")  # so that the titles of tables fit in a line
    both, one, other, html = (tmp_path / name for name in ("both.json", "one.json", "other.json", "page.html"))
    how = [*HOW, "--guard", "jpeg-compressibility", "--precision", "float32"]
    out = said(capsys, tiny, lora, *how, "--json", both, "--html", html)
    assert f"{lora} against {tiny}: paired differences" in out and "(over prompts)" in out
    said(capsys, tiny, *how, "--json", one)
    said(capsys, lora, *how, "--json", other)
    again = tmp_path / "again.json"
    said(capsys, "--compare", one, other, "--json", again)
    assert json.loads(again.read_text()) == json.loads(both.read_text())
    assert "against" in said(capsys, "--compare", both)  # one file with two models will do

    found = json.loads(both.read_text())
    assert len(found["differences"]) == 3 * (1 + len(set(found["categories"])))
    words = page_words(html)
    for result in found["models"].values():
        for name, score in result["scores"].items():
            for own in (score["overall"], *score["categories"].values()):
                factor, digits = (100, 1) if name.endswith("strict") else (1, 3)
                for number in (own["mean"], own["low"], own["high"], *(own["over_prompts"] or ())):
                    assert ("[–]" if number is None else f"{factor * number:.{digits}f}") in words
    for each in found["differences"]:
        factor, digits = (100, 1) if each["score"].endswith("strict") else (1, 3)
        for number in (each["mean"], each["low"], each["high"]):
            if number is not None:
                assert f"{factor * number:+.{digits}f}".replace("-", "−") in words
    for setting in (
        "solver euler",
        "seed 1234",
        "versions.torch",
        "rewards.balance.kind",
        "prompts_sha256",
        "8 images",
    ):
        assert setting in words


def page_words(file: Path) -> str:
    markup = re.sub(r"<(script|style).*?</\1>", "", file.read_text("utf-8"), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", markup)).split())


def test_the_page_needs_no_network_and_takes_nothing_for_markup(tmp_path: Path) -> None:
    found = []
    for name in ("runs/<i>base", "run & more", "third"):
        one = made(name, {"strict": [0.0, 1, 1, 0, 1, 1], "soft": torch.rand(6).tolist()}, guard=["soft"])
        texts = tuple(f"<b>{text}" for text in one.texts)
        found.append(replace(one, texts=texts, pictures=tuple(thumbnails(torch.rand(6, 3, 8, 8)))))
    html = evaluation_page.of(found, differences(found), "flowward eval 'a' <b>")
    assert "<i>base" not in re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL) and "<b>a 0" not in html
    assert not re.search(r"<(script|link|img|iframe)[^>]*(src|href)\s*=\s*[\"']?(https?:)?//", html)
    assert html.count("data:image/png") >= 3 * 4 and "Best" in html and "Worst" in html
    large = evaluation_page.of([replace(found[0], pictures=tuple(thumbnails(torch.rand(6, 3, 300, 200))))], [])
    assert "data:image/jpeg" in large and "Largest gains" not in large


@pytest.mark.processor
def test_unequal_models_are_refused_and_nothing_is_lost(
    capsys: pytest.CaptureFixture[str], tiny: str, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = tmp_path / "one.json", tmp_path / "new" / "other.json"
    said(capsys, tiny, *HOW, "--json", one)
    said(capsys, lora, *HOW, "--steps", "2", "--json", other)
    sentence = said(capsys, "--compare", one, other, code=2)
    assert "cannot be compared because of different settings: steps (1 and 2)" in sentence
    assert "cannot write" in said(capsys, tiny, *HOW, "--json", tmp_path, code=2)
    assert "takes two models" in said(capsys, "--compare", one, code=2)
    assert "leave one of the two out" in said(capsys, tiny, "--compare", one, code=2)

    real = exported.load
    monkeypatch.setattr(exported, "load", lambda name, precision, loading: real(name, "bf16", loading))
    kept = tmp_path / "kept.json"
    sentence = said(capsys, tiny, lora, *HOW, "--precision", "float32", "--json", kept, code=2)
    assert "precision (float32 and bf16)" in sentence and f"measured before is in {kept}" in sentence
    assert [each.name for each in measurement.read(kept)] == [tiny]


def test_intervals_are_whole_where_there_are_many_models(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    score = {"mean": 0.4, "low": 0.286, "high": 0.526, "n": 60}
    own = {"overall": score, "categories": {"color_attribution": {**score, "mean": 1.0, "high": 1.0}}}
    found = {name: {"scores": {"scenes-strict": own}} for name in ("scenes", "runs/first", "runs/second")}
    for count in (2, 3):
        log.table(dict(list(found.items())[:count]))
        said = capsys.readouterr().out
        assert said.count("[28.6, 52.6]") == said.count("[28.6, 100.0]") == count
        assert max(map(len, said.splitlines())) <= 80
