"""Encoded prompts on disk."""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_pipelines import tiny
from tiny_policies import SMALL, policy

from flowward import models
from flowward.models import cache as caches
from flowward.models.cache import PromptCache, address
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.models.text_encoders import TextEncoders


def encoded(prompts: list[str], words: int = 4) -> dict[str, torch.Tensor]:
    """Numbers that depend on the prompt alone."""
    rows = [torch.randn(words, 8, generator=torch.Generator().manual_seed(int(address(p)[:8], 16))) for p in prompts]
    return {"words": torch.stack(rows), "pooled": torch.stack([row[0] for row in rows])}


def test_what_is_added_is_found_again_by_another_process(tmp_path: Path) -> None:
    PromptCache(tmp_path, torch.float32).add(["a cat", "a dog"], encoded(["a cat", "a dog"]))
    cache = PromptCache(tmp_path, torch.float32)
    assert len(cache) == 2
    assert cache.missing(["a dog", "a fox", "a cat", "a fox"]) == ["a fox"]
    found, expected = cache.rows(["a dog", "a cat", "a dog"]), encoded(["a dog", "a cat", "a dog"])
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0)


def test_text_is_stored_as_long_as_it_is(tmp_path: Path) -> None:
    words = torch.randn(2, 5, 3)
    mask = torch.tensor([[1.0, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    cache = PromptCache(tmp_path)
    cache.add(["short", "long"], {"words": words, "mask": mask, "pooled": torch.ones(2, 5)})
    found = cache.rows(["long", "short"])
    assert found["words"].shape == (2, 4, 3)
    assert found["mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    torch.testing.assert_close(found["words"][1, :2], words[0, :2].bfloat16().float())
    assert not found["words"][1, 2:].any()
    assert cache.rows(["short"])["words"].shape == (1, 2, 3)


def test_an_interrupted_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    cache = PromptCache(tmp_path)
    cache.add(["a cat"], encoded(["a cat"]))
    monkeypatch.setattr(caches, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        cache.add(["a dog"], encoded(["a dog"]))
    assert PromptCache(tmp_path).missing(["a cat", "a dog"]) == ["a dog"]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_killed_process_leaves_no_damage(tmp_path: Path) -> None:
    (tmp_path / "0123.99.partial").write_bytes(b"half of it")
    assert len(PromptCache(tmp_path)) == 0


def test_a_home_that_cannot_be_written_ends_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("no folder")
    with pytest.raises(ValueError, match=r"\(Not a directory\): name another folder with .* FLOWWARD_CACHE$"):
        PromptCache(tmp_path / "home" / ".cache")
    cache = PromptCache(tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    with pytest.raises(OSError, match=r"cannot write .*cache"):
        cache.add(["a cat"], encoded(["a cat"]))


def test_a_user_without_a_home_has_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container whose user has a number and no name."""
    monkeypatch.setenv("FLOWWARD_CACHE", str(tmp_path))
    assert caches.cache_folder() == tmp_path
    monkeypatch.delenv("FLOWWARD_CACHE")
    assert caches.cache_folder() == Path.home() / ".cache" / "flowward"
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setitem(sys.modules, "pwd", None)
    assert caches.cache_folder() == Path(tempfile.gettempdir()) / "flowward"


def test_encoded_prompts_are_for_whoever_may_read_the_rest(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        PromptCache(tmp_path / "cache").add(["a cat"], encoded(["a cat"]))
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "cache").iterdir()} == {0o640}


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    cache = PromptCache(tmp_path)
    cache.add(["a cat"], encoded(["a cat"]))
    file = next(tmp_path.iterdir())
    file.write_bytes(file.read_bytes()[:20])
    with pytest.raises(ValueError, match=f"{file.name} is damaged; remove it"):
        PromptCache(tmp_path)


def test_23_000_prompts_stay_on_disk(tmp_path: Path) -> None:
    """184 MB of them; the process grows by an index."""
    prompts = [f"a photo of {n} things" for n in range(23_000)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cache = PromptCache(tmp_path)
    for start in range(0, len(prompts), 500):
        part = prompts[start : start + 500]
        cache.add(part, {"words": torch.ones(len(part), 500, 8)})
    again = PromptCache(tmp_path)
    assert not again.missing(prompts)
    for start in range(0, len(prompts), 1000):
        assert again.rows(prompts[start : start + 24])["words"].shape == (24, 500, 8)
    on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert on_disk > 180e6
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 100e6


@pytest.mark.parametrize("name", ["StableDiffusion3Pipeline", "QwenImagePipeline", "ZImagePipeline"])
def test_a_prepared_policy_says_the_same_without_its_encoders(name: str, tmp_path: Path) -> None:
    texts = ["a red circle", "a photo of two dog on the left"]
    plain, prepared = policy(name), policy(name)
    prepared.prepare(texts, tmp_path)
    assert getattr(prepared.family.pipe, "text_encoder", None) is None
    x, t = torch.randn(2, *plain.latent_shape), torch.tensor([0.3, 0.8])
    for guidance in (1.0, 3.0):
        found, expected = (
            each.under("policy", guidance)(x, t, each.encode(texts)).detach() for each in (prepared, plain)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="'a cat' is not encoded; prepare it first"):
        prepared.encode(["a cat"])


def test_nothing_is_encoded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy("StableDiffusion3Pipeline").prepare(["a cat", "a dog", "a cat"], tmp_path)
    other = policy("StableDiffusion3Pipeline")
    asked: list[list[str]] = []
    monkeypatch.setattr(type(other.family), "encode", lambda self, prompts: asked.append(prompts) or encoded(prompts))
    other.prepare(["a dog", "a fox"], tmp_path)
    assert asked == [["a fox"]]


def test_models_that_read_differently_share_nothing(tmp_path: Path) -> None:
    policy("StableDiffusion3Pipeline").prepare(["a cat"], tmp_path)
    policy("StableDiffusion3Pipeline", text_tokens=20).prepare(["a cat"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_model_with_another_tokenizer_shares_nothing(tmp_path: Path) -> None:
    """The same text encoder in the same place, after its chat template or its vocabulary was mended."""
    for template in (None, "{% for m in messages %}{{ m['content'] }}{% endfor %}"):
        one = tiny("ZImagePipeline")
        one.tokenizer.chat_template = template or one.tokenizer.chat_template
        DiffusersPolicy("z", FAMILIES["ZImagePipeline"](one, 32, 32), 2, "float32").prepare(["a cat"], tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("name", ["QwenImagePipeline", "ZImagePipeline", "SanaPipeline"])
def test_long_text_in_half_precision_keeps_every_token(name: str, tmp_path: Path) -> None:
    """bf16 has no odd numbers past 256: counts of tokens must not be made in it."""
    for words in range(280, 284):  # whatever a template adds: one in four would be rounded down
        one = DiffusersPolicy(name, FAMILIES[name](tiny(name).to(torch.bfloat16), 32, 32), 2, "bf16")
        texts = ["dog " * words, "a cat"]
        plain = one.family.encode(list(texts))
        one.prepare(texts, tmp_path)
        found = one.encode(texts).tensors
        assert torch.equal(found["words"][found["mask"].bool()], plain["words"][plain["mask"].bool()].float())


@pytest.mark.parametrize("name", [name for name in FAMILIES if 0 in FAMILIES[name].sources])
def test_cached_prompts_are_what_encoded_ones_are(name: str, tmp_path: Path) -> None:
    """Padding that the cache leaves out has no effect."""
    one, texts = policy(name), ["a cat", "two red dog on the left"]
    x, t = torch.randn(2, *one.latent_shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        expected = one.under("policy", 2.0)(x, t, one.encode(texts))
        one.prepare(texts, tmp_path)
        found = one.under("policy", 2.0)(x, t, one.encode(texts))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_text_past_256_tokens_is_no_longer_than_it_is() -> None:
    """What Z-Image's transformer is handed, in half precision."""
    family, lengths = FAMILIES["ZImagePipeline"](tiny("ZImagePipeline"), 32, 32), []
    mask = (torch.arange(300) < torch.tensor([[257], [263], [299], [300]])).bfloat16()

    def network(x: list[torch.Tensor], t: torch.Tensor, words: list[torch.Tensor], **more: Any) -> Any:
        lengths.extend(len(row) for row in words)
        return [x]

    family.velocity(network, torch.zeros(4, *family.shape), torch.ones(4), {"words": mask[..., None], "mask": mask}, 1)
    assert lengths == [257, 263, 299, 300]


def test_text_encoders_are_read_only_where_a_prompt_is_not_in_the_cache(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    plain = TextEncoders.read_into
    monkeypatch.setattr(TextEncoders, "read_into", lambda self, pipe: read.extend(self.names) or plain(self, pipe))

    def loaded() -> DiffusersPolicy:
        found = models.load(str(saved), 2, "float32", loading=SMALL)
        assert isinstance(found, DiffusersPolicy)
        return found

    first, second, third = loaded(), loaded(), loaded()
    assert not read
    first.prepare(["a cat", "a dog"], tmp_path)
    names = ["text_encoder", "text_encoder_2", "text_encoder_3"]
    assert read == names
    second.prepare(["a dog", "a cat"], tmp_path)
    x, t = torch.randn(1, *first.latent_shape), torch.tensor([0.4])
    found, expected = (each.under("policy", 2.0)(x, t, each.encode(["a dog"])) for each in (second, first))
    assert read == names
    assert torch.equal(found, expected)
    second.prepare(["a red circle"], tmp_path)  # let go, and read again
    assert read == 2 * names
    assert torch.equal(
        second.encode(["a red circle"]).tensors["words"], third.encode(["a red circle"]).tensors["words"]
    )
    assert read == 3 * names


def test_a_pipeline_without_files_cannot_read_its_text_encoders_again(tmp_path: Path) -> None:
    one = policy("StableDiffusion3Pipeline")
    one.prepare(["a cat"], tmp_path)
    one.prepare(["a cat"], tmp_path)
    with pytest.raises(ValueError, match="freed; prepare all prompts in one call"):
        one.prepare(["a dog"], tmp_path)


def test_the_cache_knows_text_encoders_by_what_is_in_their_files(saved: Path, tmp_path: Path) -> None:
    """Wherever they are, and in whatever files; not by their names."""
    folder = Path(shutil.copytree(saved, tmp_path / "model"))
    part = folder / "text_encoder_3"
    (file,) = part.glob("*.safetensors")
    tensors, names = load_file(file), []

    def encoders() -> list[str]:
        one = models.load(str(folder), 2, "float32", loading=SMALL)
        one.prepare(["a cat"], tmp_path / "cache")
        names.append(len(list((tmp_path / "cache").iterdir())))
        found: list[str] = one.identity["text_encoders"]
        return found

    first = encoders()
    save_file({key: tensor.bfloat16() for key, tensor in tensors.items()}, part / "model.bf16.safetensors")
    assert encoders() == first and names == [1, 1]  # a variant that is not asked for
    (part / "model.bf16.safetensors").unlink()
    last = sorted(tensors)[-1]
    save_file({**tensors, last: tensors[last] + 1}, file, {"format": "pt"})
    changed = encoders()
    assert [a == b for a, b in zip(first, changed, strict=True)] == [True, True, False] and names == [1, 1, 2]
    save_file(tensors, file, {"format": "pt"})
    config = json.loads((part / "config.json").read_text())
    (part / "config.json").write_text(json.dumps({**config, "layer_norm_epsilon": 1e-3}))
    assert encoders() == first and names == [1, 1, 2, 3]
