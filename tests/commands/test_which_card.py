"""docs/cards.md says what was counted, of recipes that exist."""

from __future__ import annotations

from pathlib import Path

import yaml
from benchmark_files import HOME, benchmark

from flowward.training import recipes

cards = benchmark("cards")
NAMED = {  # the ten that users name most
    *("sd3.5-medium", "flux.1-dev", "flux.2-dev", "qwen-image", "z-image", "wan2.2-5b", "hunyuanvideo-1.5", "ltx"),
    *("flux.1-kontext", "qwen-image-edit"),
}


def test_the_page_says_what_was_counted() -> None:
    page, found = cards.PAGE.read_text("utf-8"), yaml.safe_load(cards.RESULTS.read_text("utf-8"))
    assert cards.written(page, found) == page
    every = [recipe for own in cards.RECIPES.values() for recipe in own]
    assert found.keys() <= set(every) <= recipes.every().keys()
    assert {recipe.partition("/")[0] for recipe in every} >= NAMED


def test_the_table_says_what_fits() -> None:
    """By hand: 2 samples take 21 GB and 4 take 40; 1 point takes 23 GB."""
    taken = {"rollout_batch": {1: 12.0, 2: 21.0, 4: 40.0}, "microbatch": {1: 23.0, 2: 30.0}}
    assert cards._least(taken) == "23.0 GB"
    assert [*cards._cells(taken)] == ["does not fit", "4 samples, 2 points at once"]
    assert cards._least({"rollout_batch": {1: 12.0}, "microbatch": {}}) == "more than 72 GB"


def test_every_recipe_for_a_small_card_is_counted() -> None:
    small = {name for name in recipes.every() if name.endswith("-24gb")}
    assert small == {recipe for own in cards.RECIPES.values() for recipe in own if recipe.endswith("-24gb")}
    assert Path(HOME / "benchmarks" / "published.py").is_file()
