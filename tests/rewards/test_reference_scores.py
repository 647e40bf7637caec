"""Frozen scores: a library that is upgraded, or a change of ours, must not move them unseen.

The expected scores are in reference_scores.json. After a change that is meant,

    PYTHONPATH=tests:tests/rewards python tests/rewards/test_reference_scores.py

writes them anew and says which have moved. A new reward is a line in CASES, and a set of images where the ones here do
not do. Rewards with a network have tiny ones, whose weights come from a formula: real ones are not needed for this.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_blip
import tiny_clip
import tiny_mask2former
import tiny_open_clip
import torch
from PIL import Image, ImageDraw, ImageFont
from scenes_by_hand import scene
from torch import Tensor

from flowward import rewards

EXPECTED = Path(__file__).parents[1] / "data" / "reference_scores.json"
Frozen = dict[str, list[float]]


# --- images, drawn without random numbers and without fonts


def scenes() -> tuple[Tensor, list[str]]:
    """Pictures of the built-in world that do what the prompt says, nearly do, and do not."""
    red, blue = ("circle", "red", 10.0, 16.0, 5.0), ("square", "blue", 22.0, 16.0, 5.0)
    pictures = [
        ("a red circle", scene(("circle", "red", 16.0, 16.0, 6.0))),
        ("a red circle", scene(("circle", "orange", 16.0, 16.0, 6.0))),
        ("a red circle", scene(red, blue)),
        ("a circle left of a square", scene(red, blue)),
        ("a circle right of a square", scene(red, blue)),
        (
            "two triangles",
            scene(("triangle", "green", 9.0, 9.0, 5.0), ("triangle", "pink", 23.0, 22.0, 4.0), paper=0.95),
        ),
        ("two triangles", scene(("triangle", "green", 9.0, 9.0, 5.0), ("ring", "black", 23.0, 22.0, 6.0))),
        ("two triangles", scene(paper=0.9)),
    ]
    return torch.from_numpy(np.stack([picture for _, picture in pictures])), [prompt for prompt, _ in pictures]


def pictures() -> tuple[Tensor, list[str]]:
    """Six pictures of 48 x 64 pixels on the 8-bit grid, from whole numbers alone."""
    y, x = np.mgrid[:48, :64]
    disc = (x - 20) ** 2 + (y - 22) ** 2 < 160
    layers = [
        (4 * x, 5 * y, 0 * x + 80),
        (255 * ((x // 8 + y // 8) % 2), 0 * x + 40, 255 * (x > 31)),
        (255 * disc, 230 - 200 * disc, 230 - 3 * y),
        (230 - 220 * disc, 230 - 220 * disc, 230 - 220 * disc),
        ((x * x + 3 * y * y) % 256, (x * y) % 256, (7 * x + 11 * y * y) % 256),
        (0 * x + 128, 0 * x + 128, 0 * x + 128),
    ]
    stacked = torch.from_numpy(np.stack([np.stack(each) for each in layers])).float() / 255
    return stacked, [
        "a slope",
        "a board",
        "a red disc",
        "a red disc",
        "a red disc",
        "nothing at all, and that at length",
    ]


def words() -> tuple[Tensor, list[str]]:
    """Words in the font that Pillow carries, large and plain: what a reader of text makes of them should not change."""
    said = [
        ("OPEN", '"OPEN"'), ("CLOSED", '"CLOSED"'), ("OPEN", '"CLOSED"'),
        ("COFFEE", '"COFFEES"'), ("", '"OPEN"'), ("EXIT 12", '"EXIT 12"'),
    ]  # fmt: skip
    drawn = []
    for text, _ in said:
        picture = Image.new("RGB", (256, 128), "white")
        ImageDraw.Draw(picture).text((24, 36), text, fill="black", font=ImageFont.load_default(44))
        drawn.append(torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255)
    return torch.stack(drawn), [f"a sign that says {prompt}" for _, prompt in said]


def _asked(tag: str, *objects: tuple[str, int, str]) -> dict[str, Any]:
    """As GenEval writes it; the detector from a formula finds three apples and four parking meters everywhere."""
    clauses = [
        {"class": name, "count": count, **({"color": colour} if colour else {})} for name, count, colour in objects
    ]
    return {"tag": tag, "include": clauses}


OBJECTS = [
    _asked("counting", ("apple", 3, "")),
    _asked("counting", ("apple", 2, "")),
    _asked("colors", ("parking meter", 4, "red")),
    _asked("single_object", ("cat", 1, "")),
    _asked("counting", ("apple", 4, "")),
    _asked("two_object", ("apple", 3, ""), ("parking meter", 5, "")),
]


# --- rewards


def _options(name: str, **options: str) -> Any:
    return rewards.load([name], [f"{name}.{key}={value}" for key, value in {**options, "device": "cpu"}.items()])


def _geneval(name: str, at: Path) -> Any:
    sure = {"confidence": "0.072", "counting_confidence": "0.072"}
    return _options(name, model=f"{at}/detector", clip=f"{at}/clip", **sure)


@dataclass(frozen=True)
class Case:
    images: Callable[[], tuple[Tensor, list[str]]]
    tolerance: float  # of a score
    make: Callable[[Path], Any] | None = None  # from a folder of tiny models; None: the name is enough
    about: list[dict[str, Any]] | None = None  # metadata of each image


CASES: dict[str, Case] = {
    "scenes": Case(scenes, 2e-3),
    "scenes-strict": Case(scenes, 0.0),
    "scenes-soft": Case(scenes, 2e-3),
    "scenes-net": Case(scenes, 2e-3),
    "balance": Case(scenes, 1e-4),
    "jpeg-compressibility": Case(pictures, 0.03),
    "jpeg-incompressibility": Case(pictures, 0.03),
    "brightness": Case(pictures, 1e-5),
    "contrast": Case(pictures, 1e-5),
    "colourfulness": Case(pictures, 1e-5),
    "variety": Case(pictures, 1e-5),
    "pickscore": Case(pictures, 0.02, lambda at: _options("pickscore", model=f"{at}/clip", processor=f"{at}/clip")),
    "clipscore": Case(pictures, 2e-4, lambda at: _options("clipscore", model=f"{at}/clip")),
    "hpsv2": Case(pictures, 2e-4, lambda at: _options("hpsv2", model=f"{at}/open_clip.pt", processor=f"{at}/clip")),
    "imagereward": Case(pictures, 2e-3, lambda at: _options("imagereward", model=f"{at}/blip", tokenizer=f"{at}/blip")),
    "aesthetic": Case(pictures, 5e-4, lambda at: _options("aesthetic", model=f"{at}/clip", head=f"{at}/head.pth")),
    "diversity": Case(pictures, 2e-4, lambda at: _options("diversity", model=f"{at}/clip")),
    "geneval": Case(pictures, 1e-4, lambda at: _geneval("geneval", at), OBJECTS),
    "geneval-strict": Case(pictures, 0.0, lambda at: _geneval("geneval-strict", at), OBJECTS),
    "ocr": Case(words, 1e-4),
    "ocr-strict": Case(words, 0.0),
}
SOUND = {"loudness", "sounding", "unclipped", "tempo", "clap"}  # held to closed forms in test_sound_rewards.py
VIDEOS = {"motion", "source-frame", "steady"}  # the same, in test_video_rewards.py
ELSEWHERE = {"remote", "judge", *SOUND, *VIDEOS}  # the numbers of the first two come from a server


def tiny_models(folder: Path) -> Path:
    tiny_clip.save(folder / "clip")
    tiny_clip.save_head(folder / "head.pth")
    tiny_blip.save(folder / "blip")
    tiny_mask2former.save(folder / "detector")
    torch.save(tiny_open_clip.network().state_dict(), folder / "open_clip.pt")
    return folder


def scores(name: str, folder: Path) -> list[float]:
    case = CASES[name]
    images, prompts = case.images()
    reward = case.make(folder) if case.make else rewards.load([name])
    return [round(score, 6) for score in rewards.score(name, reward, images, prompts, case.about).tolist()]


# --- tests


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def expected() -> Frozen:
    frozen: Frozen = json.loads(EXPECTED.read_text())
    return frozen


@pytest.mark.parametrize("name", CASES)
def test_scores_have_not_moved(name: str, folder: Path, expected: Frozen) -> None:
    assert scores(name, folder) == pytest.approx(expected[name], abs=CASES[name].tolerance, rel=0)


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_score_says_something(name: str, expected: Frozen) -> None:
    """They differ between images by far more than the tolerance; otherwise nothing would be held."""
    assert np.ptp(expected[name]) > max(0.1 * max(map(abs, expected[name])), 20 * CASES[name].tolerance)


def test_every_built_in_reward_is_frozen(expected: Frozen) -> None:
    assert set(rewards.REWARDS) - ELSEWHERE == set(CASES) == set(expected)


def rewrite() -> None:
    before: Frozen = json.loads(EXPECTED.read_text()) if EXPECTED.exists() else {}
    with tempfile.TemporaryDirectory() as made:
        models = tiny_models(Path(made))
        after = {name: scores(name, models) for name in CASES}
    for name, values in after.items():
        if values != before.get(name):
            print(f"{name}: {before.get(name)} -> {values}")
    rows = [f'"{name}": {json.dumps(values)}' for name, values in after.items()]
    EXPECTED.write_text("{\n  " + ",\n  ".join(rows) + "\n}\n")


if __name__ == "__main__":
    rewrite()
