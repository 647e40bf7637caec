"""Text in pictures: the score by hand, and RapidOCR on rendered words."""

from __future__ import annotations

import random
import sys
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from flowward import rewards
from flowward.rewards import RewardError
from flowward.rewards.text.ocr import OCR, StrictOCR, edit_distance, part_distance, plain, similarity, together, wanted
from flowward.rewards.text.text_reader import TextReader

# The score


@pytest.mark.parametrize(
    ("one", "other", "distance"),
    [
        ("", "", 0),
        ("abc", "", 3),
        ("", "abc", 3),
        ("kitten", "sitting", 3),
        ("flaw", "lawn", 2),
        ("abcd", "acbd", 2),
        ("open", "open", 0),
    ],
)
def test_edit_distances_by_hand(one: str, other: str, distance: int) -> None:
    assert edit_distance(one, other) == distance


def test_the_edit_distance_is_a_metric() -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abc", k=rng.randrange(7))) for _ in range(12)]
    for a in words:
        for b in words:
            there = edit_distance(a, b)
            assert there == edit_distance(b, a) and (there == 0) == (a == b)
            assert abs(len(a) - len(b)) <= there <= max(len(a), len(b))
            assert all(there <= edit_distance(a, c) + edit_distance(c, b) for c in words)


@pytest.mark.parametrize(
    ("read", "text", "score"),
    [
        ("OPEN DAILY", "open daily", 1),
        ("we are opendaily here", "Open Daily", 1),  # contained, whatever stands beside it
        ("open dally", "open daily", 8 / 9),
        ("pen", "open", 3 / 4),
        ("", "open", 0),
        ("something else entirely", "open", 0),  # never below 0
        ("ＯＰＥＮ！", "open!", 1),  # the recogniser likes full-width signs
    ],
)
def test_scores_by_hand(read: str, text: str, score: float) -> None:
    assert similarity(plain(read), plain(text)) == pytest.approx(score)


def test_what_is_wanted() -> None:
    assert wanted('a sign that says "Open Daily"') == ["Open Daily"]
    assert wanted('a "first" and a "second" sign') == ["first", "second"]
    assert wanted('a sign that says "Open"', {"text": "Closed"}) == ["Closed"]  # metadata comes first
    assert wanted("a sign", {"text": ["Open", "24 h"]}) == ["Open", "24 h"]
    for prompt, about in (
        ("a sign", None),
        ('a sign that says " "', None),
        ("a sign", {"text": ""}),
        ("x", {"text": 3}),
        ("x", {"text": []}),
        ("x", {"text": ["Open", " "]}),
    ):
        with pytest.raises(ValueError, match="has no text to show; put it in double quotes, or in metadata 'text'"):
            wanted(prompt, about)


@pytest.mark.parametrize(
    ("read", "texts", "score"),
    [
        ("open daily", ["open daily"], 1),
        ("something else", ["open"], 0),  # one text: as published
        ("24 h we are open", ["open", "24 h"], 1),  # in any order, between other text
        ("opem 24 h", ["open", "24 h"], 1 - 1 / 7),
        ("open", ["open", "24 h"], 4 / 7),
        ("", ["open", "24 h"], 0),
        ("xyz", ["open", "24 h"], 0),
    ],
)
def test_several_texts_count_together(read: str, texts: list[str], score: float) -> None:
    assert together(plain(read), [plain(text) for text in texts]) == pytest.approx(score)


def test_the_distance_to_a_part_by_its_definition() -> None:
    rng = random.Random(0)
    for _ in range(50):
        read, text = ("".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(2))
        parts = [read[a:b] for a in range(len(read) + 1) for b in range(a, len(read) + 1)]
        assert part_distance(read, text) == min(edit_distance(part, text) for part in parts)


# On pictures


def rendered(lines: str, size: int = 48, side: int = 512, seed: int = 0) -> Tensor:
    """[3, side, side] in [0, 1]: dark text on a light board, on a blurred background."""
    rng = np.random.default_rng(seed)
    noise = np.clip(rng.normal(128, 40, (8, 8, 3)), 0, 255).astype(np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    box = draw.textbbox((40, 150), lines, font=font)
    if lines:
        draw.rectangle((box[0] - 12, box[1] - 12, box[2] + 12, box[3] + 12), fill="white")
    draw.text((40, 150), lines, font=font, fill=(20, 20, 60))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


@pytest.fixture(scope="module")
def ocr() -> OCR:
    made = rewards.make("ocr", {"threads": "1"})
    assert type(made) is OCR
    return made


SHOWN = ("Fresh Bread", "NO PARKING", "Midnight Jazz\nEvery Friday", "Exit 42", "")
IMAGES = torch.stack([rendered(text, seed=seed) for seed, text in enumerate(SHOWN)])
ASKED = [f'a sign with the words "{text}"' for text in ("Fresh Bread", "No Parking", "midnight jazz", "Exit 24", "x")]


def test_rendered_words_are_read(ocr: OCR) -> None:
    assert [plain(text) for text in ocr.read(IMAGES)] == [plain(text) for text in SHOWN]
    assert ocr(IMAGES, ASKED).tolist() == pytest.approx([1, 1, 1, 1 - 2 / 6, 0])


def test_other_words_score_what_their_distance_says(ocr: OCR) -> None:
    asked = [f'"{text}"' for text in ("Fresh Breads", "No Barking", "Midnight Jass", "Exit 42", "nothing")]
    expected = [1 - 1 / 11, 1 - 1 / 9, 1 - 12 / 12, 1, 0]  # the second line of the third stands in the way
    assert ocr(IMAGES, asked).tolist() == pytest.approx(expected)


def test_batch_order_threads_and_dtype_change_nothing(ocr: OCR) -> None:
    read = ocr.read(IMAGES)
    assert [ocr.read(image[None])[0] for image in IMAGES] == read
    assert ocr.read(IMAGES.flip(0)) == read[::-1]
    assert OCR(threads=2).read(IMAGES) == read
    assert ocr.read(IMAGES.double()) == read
    assert ocr.read(IMAGES * 1.5 - 0.25) is not None  # out of range, as a decoder may give them
    assert ocr.read(torch.full((1, 3, 64, 64), float("nan"))) == [""]
    assert ocr.read(torch.rand(1, 3, 7, 9)) == [""]


def test_text_is_found_at_other_sizes_and_shapes(ocr: OCR) -> None:
    wide = rendered("Open Daily", 40)[:, 100:300]
    assert ocr(wide[None], ['"Open Daily"']).item() == 1
    assert ocr(rendered("Open Daily", 90, 1024)[None], ['"Open Daily"']).item() == 1
    assert ocr(rendered("Open Daily", 20)[None], ['"Open Daily"']).item() == 1


def test_metadata_names_the_text(ocr: OCR) -> None:
    about = [{"text": "Fresh Bread"}, {"text": "elsewhere"}]
    assert ocr(IMAGES[:2], ["a bakery", 'a "No Parking" sign'], about)[0] == 1
    scores = rewards.score("ocr", ocr, IMAGES[:2, None].expand(-1, 2, -1, -1, -1), ["a", "b"], about)  # videos
    assert scores[0] == 1 and scores[1] < 0.5


def test_the_verdict_says_what_is_read() -> None:
    strict = rewards.load(["ocr-strict"])
    assert isinstance(strict, StrictOCR) and isinstance(strict, rewards.Explains)
    assert strict(IMAGES, ASKED).tolist() == [1, 1, 1, 0, 0]
    assert strict(IMAGES[:2], ['"Fresh" and "Bread"', '"No" and "Entry"']).tolist() == [1, 0]
    assert strict.explain(IMAGES, ASKED) == ["", "", "", "reads 'Exit 42'", "no text"]


def test_the_reader_takes_blue_first_and_grey_is_nothing() -> None:
    class Engine:
        def detect_and_crop(self, picture: NDArray[np.uint8], _: dict[str, object]) -> tuple[list[Any], None]:
            return [picture[:24, :10], picture[:12]], None

    red = np.full((32, 64, 3), (255, 0, 0), np.uint8)
    short, long = TextReader(Engine()).lines(red)
    assert short.shape == (48, 64, 3) and long.shape == (48, 256, 3)
    assert (short[:, :20] == (0, 0, 255)).all() and (short[:, 20:] == 128).all()


def test_a_confidence_drops_lines() -> None:
    assert OCR(confidence=1.0).read(IMAGES[:1]) == [""]


# What is refused


def test_a_prompt_without_text_is_refused(ocr: OCR) -> None:
    rewards.refuse(ocr, ASKED)
    rewards.refuse(ocr, ["a bakery"], [{"text": "Bread"}])
    for reward in (ocr, rewards.load(["ocr", "balance=0.5"])):
        with pytest.raises(ValueError, match="the prompt 'a bakery' has no text to show"):
            rewards.refuse(reward, [ASKED[0], "a bakery"])
    with pytest.raises(RewardError, match="the prompt 'a bakery' has no text"):
        rewards.score("ocr", ocr, IMAGES[:1], ["a bakery"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["ocr.side=8"], "reward 'ocr': the side must be at least 32"),
        (["ocr.confidence=2"], "the confidence in"),
        (["ocr.threads=-1"], "threads at least 0"),
        (["ocr.size=3"], "option size"),
    ],
)
def test_a_bad_option_is_refused(options: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rewards.load(["ocr"], options)


def test_rapidfuzz_that_is_missing_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidfuzz.distance", None)
    with pytest.raises(ValueError, match=r"comparing texts needs rapidfuzz; pip install 'flowward\[rewards\]'"):
        rewards.load("ocr")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rapidocr", None)
    with pytest.raises(
        ValueError, match=r"reward 'ocr': recognising text needs rapidocr; pip install 'flowward\[rewards\]'"
    ):
        rewards.load(["ocr"], ["ocr.side=333"])
