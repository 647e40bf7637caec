"""What a study recommends: the best at equal time, its ties, and the reward that is closest to the question."""

from __future__ import annotations

import pytest
from leaderboards import IMAGES, budget, study

from flowward.studies.ranking import Ranking, ranking

VERDICTS = ("scenes-strict", "ocr-strict")


def ranked(*rewards: str, passing: bool = False, found: object = None) -> Ranking:
    own = ranking(found or study(), rewards, passing, VERDICTS)  # type: ignore[arg-type]
    assert own
    return own


def test_equal_time_counts_and_not_equal_images() -> None:
    own = ranked("scenes-strict", passing=True)
    assert (own.budget, own.amount, own.when) == ("seconds", 50, "after 50 seconds of training")
    assert next(iter(own.scores)) == "awm"  # flow_grpo is the best at equal images
    assert own.scores["awm"].percent() == "62.0 % [59.5, 64.5]"


def test_without_seconds_evaluations_count_and_then_images() -> None:
    soft = study(images=budget(4320, IMAGES), evaluations=budget(9e4, {**IMAGES, "awm": 0.9}))
    assert next(iter(ranked("scenes-soft", found=soft).scores)) == "awm"
    assert next(iter(ranked("scenes-soft").scores)) == "flow_grpo"


def test_overlapping_differences_are_leaders_together() -> None:
    own = ranked("scenes-strict", passing=True)
    assert own.leaders(("awm", "diffusion_nft", "advantageflow", "flow_grpo")) == ("awm", "diffusion_nft")
    assert own.leaders(("advantageflow", "flow_grpo", "diffusion_nft")) == ("diffusion_nft", "advantageflow")
    assert own.leaders(("flow_grpo",)) == ("flow_grpo",)
    assert own.leaders(("unknown",)) == ()


def test_a_difference_is_significant_if_its_interval_is_above_zero() -> None:
    own = ranked("scenes-strict", passing=True)
    assert not own.told_apart("awm", "diffusion_nft")
    assert own.told_apart("awm", "advantageflow")
    assert own.difference("awm", "advantageflow").percent("+") == "+2.0 points [+0.5, +3.5]"
    assert not own.told_apart("advantageflow", "awm")


@pytest.mark.parametrize(
    ("rewards", "passing", "closest"),
    [
        (["scenes"], False, "both"),  # the same
        (["scenes-strict"], True, "strict"),
        (["ocr-strict"], True, "strict"),  # of the same kind
        (["pickscore"], False, "soft"),
        (["pickscore", "ocr"], False, "soft"),
    ],
)
def test_the_closest_reward_is_read(rewards: list[str], passing: bool, closest: str) -> None:
    assert ranked(*rewards, passing=passing).reward == closest


def test_an_empty_leaderboard_ranks_nothing() -> None:
    assert ranking({}, ["scenes"], False, VERDICTS) is None
