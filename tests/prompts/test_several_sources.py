"""Edits with several images, in their order: files, names, models, rewards and pages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from edit_sets import KONTEXT, paint
from judges import IMAGES, first_token, judged, seen
from PIL import Image
from tiny_policies import policy

from flowward import prompts
from flowward.cli import main
from flowward.evaluation import evaluate, images, measurement
from flowward.evaluation.provenance import hash_of
from flowward.models.cache import PromptCache, address
from flowward.models.families.edits import passes
from flowward.process.rollout import Sampler
from flowward.prompts import Edit, PromptSet
from flowward.prompts.pictures import collage, picture
from flowward.rewards import score
from flowward.rewards.judges.judge import Judge
from flowward.rewards.reward import subjects
from flowward.training.datasets import Preferences

PLUS, KLEIN = "QwenImageEditPlusPipeline", "Flux2KleinPipeline"
LINES = [
    {"prompt": "a red cat", "source": ["a.png", "b.png"]},
    {"prompt": "a red cat", "source": ["b.png", "a.png"]},
    {"prompt": "a red cat", "source": ["a.png"]},
    {"prompt": "two dog"},
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    paint(tmp_path / "a.png", 0.2)
    paint(tmp_path / "b.png", 0.8)
    return tmp_path


def loaded(folder: Path, lines: list[dict[str, Any]] = LINES) -> PromptSet:
    (folder / "several.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return prompts.load(str(folder / "several.jsonl"))


# Files and names


def test_a_list_of_sources_is_one_prompt_and_their_order_counts(folder: Path) -> None:
    a, b, found = folder / "a.png", folder / "b.png", loaded(folder)
    assert list(found) == [
        Edit("a red cat", a, (b,)), Edit("a red cat", b, (a,)), Edit("a red cat", a), "two dog"
    ]  # fmt: skip
    assert found.about(range(4)) == [
        {"source": str(a), "sources": [str(a), str(b)]}, {"source": str(b), "sources": [str(b), str(a)]},
        {"source": str(a)}, {},
    ]  # fmt: skip
    assert prompts.of("several.jsonl", list(found)) == found
    assert len({str(each) for each in found}) == len({hash_of(prompts.of("x", [each])) for each in found}) == 4
    assert len({address(each) for each in found}) == 4


def test_lists_of_a_parquet_file_are_sources(folder: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(arrow.Table.from_pylist(LINES[:3]), folder / "several.parquet")
    assert list(prompts.load(str(folder / "several.parquet"))) == list(loaded(folder, LINES[:3]))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (["a.png", "gone.png"], "line 2: 'source' must be the path of an image to edit, but there is no file .*gone"),
        (["a.png", "several.jsonl"], "line 2: .*several.jsonl is not an image that can be read"),
        ([], "line 2: 'source' is an empty list: name at least one image to edit, or leave the key out"),
        (["a.png", None], "line 2: 'source' must be the path of an image to edit, but there is no file None"),
        ([["a.png"]], r"line 2: 'source' must be the path of an image to edit, but there is no file \['a.png'\]"),
    ],
)
def test_each_of_several_sources_must_be_an_image(folder: Path, source: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says) as error:
        loaded(folder, [LINES[0], {"prompt": "x", "source": source}])
    assert "\n" not in str(error.value)


def test_prompts_with_one_source_have_the_names_of_earlier_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their hashes as of the version before several sources."""
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        Path(f"{name}.png").write_text(name)
    one = Edit("make it red", Path("a.png"))
    found = PromptSet("x", ("make it red", "a"), ("all", "all"), sources=((Path("a.png"),), ()))
    assert hash_of(found) == "8617b5af4692be29"
    assert address(one) == "bc5eabfa88d47f8b229e8f1509773b37a1c7dca3"
    assert Preferences(found, {one: [("b.png",)]}).identity == "dae15901285db685"  # type: ignore[list-item]
    assert str(one) == "make it red [a.png]"
    assert subjects(["x"], [{"source": "a.png"}]) == ["x\0a.png"]


# Models


def test_a_model_says_how_many_sources_it_takes(folder: Path) -> None:
    found, path = loaded(folder), folder / "a.png"
    with pytest.raises(ValueError, match="takes at most 1 source image per prompt, but 'a red cat' has 2; remove some"):
        policy(KONTEXT).refuse(list(found)[:1])
    plus = policy(PLUS)
    plus.refuse(list(found)[:3])
    with pytest.raises(ValueError, match="takes at most 3 source images per prompt, but 'a' has 4"):
        plus.refuse([Edit("a", path, (path,) * 3)])
    with pytest.raises(ValueError, match="edits images, but 'two dog' has no source image"):
        plus.refuse(list(found))
    with pytest.raises(ValueError, match="cannot edit images, but 'a red cat' has the source image"):
        policy("StableDiffusion3Pipeline").refuse(list(found))
    klein = policy(KLEIN)
    klein.refuse(list(found))
    klein.weights.collective = True
    klein.refuse(list(found)[:2])
    with pytest.raises(ValueError, match="some prompts have 0 source images and some 2, which one run cannot mix"):
        klein.refuse(list(found))


def test_rows_with_as_many_sources_go_through_the_network_together() -> None:
    counts, source = torch.tensor([2.0, 0, 2, 1]), torch.arange(12.0).view(4, 3, 1)
    rows = {"words": torch.arange(4.0), "source": source, "sources": counts}
    found = passes(rows)
    assert [own.tolist() for own, _ in found] == [[1], [3], [0, 2]]
    assert [part["source"].shape[1] for _, part in found] == [0, 1, 2]
    assert [part["words"].tolist() for _, part in found] == [[1], [3], [0, 2]]
    assert torch.equal(found[2][1]["source"], source[[0, 2], :2])
    ((every, part),) = passes({"words": torch.arange(3.0)})
    assert every.tolist() == [0, 1, 2] and list(part) == ["words"]
    mask = torch.tensor([[1.0, 1, 0], [1, 0, 0], [1, 1, 0]])
    alike = passes({"words": torch.ones(3, 3, 2), "mask": mask}, masked=False)
    assert [(own.tolist(), tuple(part["words"].shape)) for own, part in alike] == [
        ([1], (1, 1, 2)),
        ([0, 2], (2, 2, 2)),
    ]


@pytest.mark.parametrize("name", [PLUS, KLEIN])
def test_a_prepared_model_reads_prompts_of_all_kinds_from_its_cache(name: str, folder: Path) -> None:
    plain, prepared = policy(name), policy(name)
    asked = list(loaded(folder))[: None if name == KLEIN else 3]
    prepared.prepare(asked, folder / "cache")
    x, t = torch.randn(len(asked), *plain.latent_shape), torch.full((len(asked),), 0.6)
    with torch.no_grad():
        found, expected = (one.under("policy", 3.0)(x, t, one.encode(asked)) for one in (prepared, plain))
        alone = prepared.under("policy", 3.0)(x[2:3], t[2:3], prepared.encode(asked[2:3]))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[2:3], alone, rtol=0, atol=1e-5)


def test_the_cache_stores_as_many_sources_as_there_are(folder: Path) -> None:
    """Also if there are as many sources as words, whose padding the mask tells."""
    cache, asked = PromptCache(folder / "cache"), list(loaded(folder))[:3]
    source, counts = torch.ones(3, 2, 4), torch.tensor([2.0, 2, 1])
    source[2, 1] = 0
    mask = torch.tensor([[1.0, 0], [1, 1], [1, 1]])
    cache.add(asked, {"words": torch.ones(3, 2, 5), "mask": mask, "source": source, "sources": counts})
    found = cache.rows(asked)
    assert torch.equal(found["source"], source) and found["sources"].tolist() == [2, 2, 1]
    assert cache.rows(asked[2:])["source"].shape == (1, 1, 4) and cache.rows(asked[:1])["words"].shape == (1, 1, 5)


# Rewards and pages


def test_a_judge_sees_the_first_source_or_all(folder: Path) -> None:
    found = loaded(folder)
    shown = []
    for template in ("edit", "edit-several"):
        with judged(lambda _: first_token(("Yes", -0.1), ("No", -3.0))) as (at, requests):
            score("judge", Judge(server=at, template=template), IMAGES[:1], found.texts[:1], found.about([0]))
        shown.append([round(255 * mean) for mean in seen(requests[0])[0]])
    assert shown == [[51, 10], [51, 204, 10]]


def test_images_are_compared_with_those_of_the_same_sources(folder: Path) -> None:
    found = loaded(folder)
    assert len(set(subjects(found.texts, found.about(range(4))))) == 4


def test_several_sources_share_one_picture(folder: Path) -> None:
    a, b = folder / "a.png", folder / "b.png"
    assert torch.equal(collage([a], (8, 8)), picture(a, (8, 8)))
    both = (255 * collage([a, b, b], (8, 8))).round()[0]
    assert (both[:4, :4] == 51).all() and (both[:4, 4:] == 204).all() and (both[4:, :4] == 204).all()
    assert (both[4:, 4:] == 255).all() and (collage([], (8, 8)) == 1).all()
    grid = np.asarray(images.labelled_grid(torch.zeros(2, 3, 32, 32), ["x", "y"], sources=[(a, b), ()]))
    row = grid[images.MARGIN + 16, images.MARGIN : images.MARGIN + 256, 0]
    assert (row[:64] == 51).all() and (row[64:128] == 204).all() and (row[128:] == 0).all()


def test_a_measurement_keeps_all_sources(folder: Path) -> None:
    how = evaluate.Evaluation(images=4, batch=4, sampler=Sampler(1, grid="model"))
    found = evaluate.measure(policy(KLEIN), loaded(folder), how, {"bright": lambda shown, *_: shown.mean((1, 2, 3))})
    assert len(set(found.prompt.tolist())) == 4
    (folder / "found.json").write_text(measurement.to_json([found]))
    (again,) = measurement.read(folder / "found.json")
    assert again.prompts == found.prompts and again.summary() == found.summary()


def test_sample_and_eval_with_two_sources(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tiny_pipelines import tiny

    tiny(KLEIN).save_pretrained(folder / "klein")
    given = [str(folder / "klein"), "--size", "32", "32", "--device", "cpu", "--precision", "float32", "--steps", "1"]
    file, both = folder / "out.png", ["--source", str(folder / "a.png"), "--source", str(folder / "b.png")]
    assert main(["sample", given[0], "a red cat", *given[1:], *both, "--count", "1", "--output", str(file)]) == 0
    with Image.open(file) as grid:
        assert grid.width == 288 + 2 * images.MARGIN
    loaded(folder)
    page = folder / "page.html"
    how = ["--prompts", str(folder / "several.jsonl"), "--rewards", "jpeg-compressibility", "--images", "4"]
    assert main(["eval", *given, *how, "--html", str(page)]) == 0
    labels = set(re.findall(r'alt="[^"]+, ((?:\d+ )?source images?)"', page.read_text()))
    assert labels == {"source image", "2 source images"}
    capsys.readouterr()


def test_without_sources_their_numbers_are_not_read() -> None:
    """They lie on the GPU, which would have to finish its work first; these lie nowhere and cannot be read."""
    rows = {"words": torch.zeros(3, 4, 5), "source": torch.zeros(3, 0, 2, 2), "sources": torch.zeros(3, device="meta")}
    ((own, part),) = passes(rows)
    assert own.tolist() == [0, 1, 2] and part["words"] is rows["words"] and not part["source"].numel()
