"""Names of GPUs, and how long an image takes on them."""

from __future__ import annotations

import pytest

from flowward.studies import cards, sizes
from flowward.studies.cards import Card, Passes
from flowward.system import tables

SD3 = "stabilityai/stable-diffusion-3.5-medium"


@pytest.mark.parametrize(
    ("text", "name", "memory"),
    [
        ("H100", "H100", 80),
        ("h200", "H200", 141),
        ("4090", "RTX 4090", 24),
        ("NVIDIA GeForce RTX 4090", "RTX 4090", 24),
        ("rtx-a6000", "RTX A6000", 48),
        ("24", "24 GB", 24),
        ("24GB", "24 GB", 24),
        ("11.5 gb", "11.5 GB", 11.5),
    ],
)
def test_a_card_by_name_or_memory(text: str, name: str, memory: float) -> None:
    card = cards.named(text)
    assert card and (card.name, card.memory) == (name, memory)
    assert card.usable == pytest.approx(0.9 * memory)


def test_no_card() -> None:
    assert cards.named("none") is None


@pytest.mark.parametrize("text", ["H99", "", "0", "-3", "5000", "nan", "24MB"])
def test_an_unknown_card_says_what_is_possible(text: str) -> None:
    with pytest.raises(
        ValueError, match=r"unknown --gpu .*give its memory, such as 24GB, or none, or one of H200, H100"
    ):
        cards.named(text)


def test_every_card_with_a_device_has_a_peak() -> None:
    peaks = tables.load(cards.PEAKS)
    assert {own["device"] for own in cards._cards().values() if "device" in own} <= peaks.keys()


def measured_size() -> sizes.Size:
    """As it was measured: 128 text tokens."""
    speed, known = tables.load(cards.FOLDER / "speed.yaml"), sizes.known(SD3)
    assert known
    return sizes.Size(512, 128, True, speed["forward"], speed["both"], known.memory)


def test_the_measured_card_takes_the_measured_seconds() -> None:
    """8.2 images of 10 steps, 26.7 points and 60 decoded images per second (docs/benchmarks.md)."""
    card = cards.named("H200")
    assert card
    found = cards.pace(card, SD3, measured_size(), "", Passes(10, 1, 0))
    assert found and found.seconds == pytest.approx(1 / 8.2 + 1 / 26.7 + 1 / 60, rel=1e-3)
    assert found.basis == "from passes of this model measured on an H200"


def test_other_cards_and_models_are_estimates_in_proportion() -> None:
    size, passes = measured_size(), Passes(10, 1, 2)
    h200, a100 = cards.named("H200"), cards.named("A100")
    assert h200 and a100
    here, there = (cards.pace(card, SD3, size, "", passes) for card in (h200, a100))
    assert here and there and there.seconds / here.seconds == pytest.approx(989 / 312)
    assert "an estimate" in there.basis and "not measured on this card" in there.basis
    other = cards.pace(h200, "another/model", size, "", passes)
    assert other and other.basis.endswith("not measured on this model")


def test_options_that_save_memory_take_time() -> None:
    card, size = cards.named("H100"), measured_size()
    assert card
    plain, kept = (
        cards.pace(card, SD3, size, way, Passes(0, 1, 0)) for way in ("", "--gradient-checkpointing --quantise nf4")
    )
    assert plain and kept and kept.seconds > 2 * plain.seconds


def test_a_card_of_unknown_speed_has_no_pace() -> None:
    assert cards.pace(Card("24 GB", 24), SD3, measured_size(), "", Passes(10, 1, 0)) is None
