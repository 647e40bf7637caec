"""Prompts with an image to edit: one text may come with many, and every part tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_sets import EDITS, KONTEXT, LINES, paint, written
from PIL import Image
from tiny_pipelines import tiny as pipeline
from tiny_policies import policy

from flowward import models, prompts
from flowward.evaluation.provenance import hash_of
from flowward.models.cache import PromptCache
from flowward.models.diffusers import DiffusersPolicy
from flowward.models.families import FAMILIES
from flowward.prompts import Edit, PromptSet, files
from flowward.prompts.pictures import picture

# Sets


def test_a_text_with_two_sources_is_two_prompts(edits: PromptSet, tmp_path: Path) -> None:
    a, b = tmp_path / "a.png", tmp_path / "sub" / "b.png"
    assert list(edits) == [Edit("a red cat", a), Edit("a red cat", b), Edit("two dog", a)]
    assert edits.texts == ("a red cat", "a red cat", "two dog")
    assert len(set(map(str, edits))) == 3
    assert edits.about(range(3)) == [
        {"source": str(a)}, {"kind": "animal", "source": str(b)}, {"count": 2, "source": str(a)}
    ]  # fmt: skip
    assert a.is_absolute()
    assert prompts.of("mine", list(edits)).sources == edits.sources


def test_the_same_text_and_source_is_one_prompt(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = {"prompt": "a red cat", "source": "sub/../a.png"}
    assert len(prompts.load(str(written(tmp_path, [*LINES, again])))) == 3
    assert "dropped 1 of 4 prompts as duplicates" in capsys.readouterr().err


def test_columns_of_parquet_hold_sources_too(tmp_path: Path, edits: PromptSet) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.Table.from_pylist([{name: row.get(name) for name in ("prompt", "source")} for row in LINES])
    parquet.write_table(table, tmp_path / "edits.parquet")
    assert list(prompts.load(str(tmp_path / "edits.parquet"))) == list(edits)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("gone.png", "line 2: 'source' must be the path of an image to edit, but there is no file .*gone.png"),
        ("edits.jsonl", "line 2: .*edits.jsonl is not an image that can be read"),
        ("sub", "line 2: 'source' must be the path of an image"),
        ("", "line 2: 'source' must be the path of an image"),
        (7, "line 2: 'source' must be the path of an image to edit, but there is no file 7"),
    ],
)
def test_a_source_that_is_no_image_is_named_with_its_line(tmp_path: Path, source: Any, says: str) -> None:
    file = written(tmp_path, [LINES[0], {**LINES[1], "source": source}])
    with pytest.raises(ValueError, match=says) as error:
        prompts.load(str(file))
    assert "\n" not in str(error.value)


def test_a_source_that_was_cut_short_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path)
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"line 1: .*a\.png is not an image that can be read"):
        prompts.load(str(file))


def test_on_the_hub_a_source_is_metadata() -> None:
    found = files.collected("x", "data set x", "row", enumerate([{"prompt": "a cat", "source": "laion"}], 1))
    assert list(found) == ["a cat"] and found.metadata == ({"source": "laion"},)


def test_one_instruction_for_many_images_can_be_split(tmp_path: Path) -> None:
    lines = [{"prompt": "make it red", "source": paint(tmp_path / f"{n}.png", 0.5).name} for n in range(60)]
    file = written(tmp_path, lines)
    kept, held_out = (prompts.load(f"{part}:{file}") for part in ("train", "held-out"))
    assert sorted(map(str, [*kept, *held_out])) == sorted(map(str, prompts.load(str(file))))
    assert 0 < len(held_out) < 10
    fewer = prompts.load(f"held-out:{written(tmp_path, lines[::2])}")
    assert set(fewer) == set(held_out) & set(prompts.load(str(tmp_path / "edits.jsonl")))


def test_what_was_measured_depends_on_what_is_in_the_sources(tmp_path: Path) -> None:
    found = []
    for name, dark in (("here", 0.2), ("there", 0.2), ("elsewhere", 0.3)):
        (tmp_path / name).mkdir()
        found.append(hash_of(prompts.load(str(written(tmp_path / name, dark=dark)))))
    assert found[0] == found[1] != found[2]


# Models


def test_who_edits_and_who_does_not(tiny: str, edits: PromptSet) -> None:
    scenes, sd3, kontext = models.load(tiny, precision="float32"), policy("StableDiffusion3Pipeline"), policy(KONTEXT)
    for one in (scenes, sd3):
        for ask in (one.refuse, one.encode):
            with pytest.raises(
                ValueError, match=r"cannot edit images, but 'a red cat' has the source image .*a\.png"
            ) as error:
                ask(list(edits))
            assert "\n" not in str(error.value)
    for ask in (kontext.refuse, kontext.encode):
        with pytest.raises(ValueError, match="edits images, but 'a cat' has no source image"):
            ask([edits[0], "a cat"])
    kontext.refuse(list(edits))
    sd3.refuse(["a cat"])


def test_the_size_of_a_source_does_not_matter(tmp_path: Path) -> None:
    """It is scaled and cropped: the middle of a wide picture is what is seen."""
    wide = np.zeros((64, 128, 3), np.uint8)
    wide[:, 32:96] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide[:, 32:96]).save(tmp_path / "square.png")
    found = picture(tmp_path / "wide.png", (32, 32))
    torch.testing.assert_close(found, picture(tmp_path / "square.png", (32, 32)), rtol=0, atol=0.1)
    turned = Image.fromarray(wide)
    turned.getexif()[0x0112] = 6  # a camera held upright
    turned.save(tmp_path / "turned.jpg", exif=turned.getexif(), quality=100)
    upright = Image.fromarray(np.rot90(wide, 3))
    upright.save(tmp_path / "upright.png")
    seen_, wanted = (picture(tmp_path / name, (32, 16)) for name in ("turned.jpg", "upright.png"))
    torch.testing.assert_close(seen_, wanted, rtol=0, atol=0.05)


def test_without_its_text_an_edit_keeps_its_source(edits: PromptSet) -> None:
    """Guidance compares with what the model makes of that image alone, padding and all."""
    one = policy("QwenImageEditPlusPipeline")
    whole, swapped = one.encode(list(edits)), one.encode([edits[2], edits[1], edits[0]])
    blank, other = one.blank()(whole), one.blank()(swapped)
    assert blank.tensors.keys() == whole.tensors.keys()
    for name in ("words", "mask", "source"):
        torch.testing.assert_close(blank.tensors[name], other.tensors[name], rtol=0, atol=1e-5)
    assert not torch.allclose(blank.tensors["words"][0], blank.tensors["words"][1], atol=1e-3)
    x, t = torch.randn(3, *one.latent_shape), torch.tensor([0.3, 0.8, 0.5])
    with torch.no_grad():
        v, v_0 = (one.velocity(x, t, each) for each in (whole, blank))
        torch.testing.assert_close(one.under("policy", 3.0)(x, t, whole), one.guided(v, v_0, 3.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EDITS)
def test_a_prepared_model_edits_the_same_without_its_encoders(name: str, edits: PromptSet, tmp_path: Path) -> None:
    plain, prepared = policy(name), policy(name)
    prepared.prepare(list(edits), tmp_path / "cache")
    assert prepared.family.pipe.text_encoder is None
    x, t = torch.randn(3, *plain.latent_shape), torch.tensor([0.3, 0.8, 0.5])
    found, expected = (each.under("policy", 3.0)(x, t, each.encode(list(edits))).detach() for each in (prepared, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is not encoded; prepare it first"):
        prepared.encode([Edit("two dog", tmp_path / "sub" / "b.png")])


def test_sources_are_known_by_what_is_in_them(edits: PromptSet, tmp_path: Path) -> None:
    cache = PromptCache(tmp_path / "cache")
    cache.add(list(edits), {"words": torch.arange(12.0).view(3, 2, 2)})
    (tmp_path / "a.png").rename(tmp_path / "moved.png")
    moved = Edit("a red cat", tmp_path / "moved.png")
    assert not cache.missing([moved])
    torch.testing.assert_close(cache.rows([moved])["words"][0], torch.arange(4.0).view(2, 2))
    paint(tmp_path / "a.png", 0.4)
    assert cache.missing(list(edits)) == [edits[0], edits[2]]
    assert cache.missing(["a red cat"]) == ["a red cat"]


def test_two_sizes_share_no_encoded_sources(edits: PromptSet, tmp_path: Path) -> None:
    for side in (32, 64):
        family = FAMILIES[KONTEXT](pipeline(KONTEXT), side, 32)
        one = DiffusersPolicy(KONTEXT, family, None, "float32")
        one.prepare(list(edits), tmp_path / "cache")
        assert one.encode(list(edits)).tensors["source"].shape == (3, 1, *one.latent_shape)
    assert len(list((tmp_path / "cache").iterdir())) == 2
