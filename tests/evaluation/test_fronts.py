"""Fronts: dominance, hypervolumes, and their intervals over prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from flowward.evaluation.fronts import Grid, compared, floor_of, front, hypervolume
from flowward.evaluation.measurement import Measurement


def test_t58_the_hypervolume_of_two_points() -> None:
    """T58: {(1, 2), (2, 1)} over (0, 0) has 3."""
    assert hypervolume([[1, 2], [2, 1]], [0, 0]) == 3
    assert hypervolume([[1, 2], [2, 1], [0.5, 0.5], [2, 1]], [0, 0]) == 3
    assert hypervolume([[1, 2], [2, 1]], [0.5, 0.5]) == pytest.approx(1.25)
    assert hypervolume([[1, 2], [2, -1]], [0, 0]) == 2  # below the floor


@pytest.mark.parametrize("many", [1, 2, 3, 4])
def test_hypervolumes_by_inclusion_and_exclusion(many: int) -> None:
    """The union of G boxes in R dimensions, exactly, one or several sets at a time."""
    points = np.random.default_rng(many).random((3, 4, many))
    expected = []
    for each in points:
        total = 0.0
        for mask in range(1, 2 ** len(each)):
            chosen = [each[k] for k in range(len(each)) if mask >> k & 1]
            total += (-1) ** (len(chosen) + 1) * np.min(chosen, 0).prod()
        expected.append(total)
    np.testing.assert_allclose(hypervolume(points, np.zeros(many)), expected, atol=1e-12)


def test_points_that_no_other_beats() -> None:
    points = [[0, 3], [1, 1], [3, 0], [1, 0.5], [3, 0], [1, 1]]
    assert front(points).tolist() == [True, True, True, False, True, True]  # equal points do not beat each other


def measured(scores: dict[str, Any], bounds: Any = None) -> Measurement:
    texts = tuple("aabbccdd")
    made = {name: torch.tensor(values, dtype=torch.float32) for name, values in scores.items()}
    return Measurement("m", {}, texts, ("x",) * 8, made, frozenset(), bounds=bounds or {})


def grid(name: str, *shifts: tuple[float, float], seed: int = 0) -> Grid:
    noise = np.random.default_rng(seed).random((8, 2)) * 0.2
    found = tuple(measured({"p": noise[:, 0] + a, "q": noise[:, 1] + b}, {"p": (0.0, 2.0)}) for a, b in shifts)
    return Grid(name, ("p", "q"), ((1.0, 0.0), (0.0, 1.0))[: len(shifts)], found)


def test_the_difference_of_two_grids_is_paired() -> None:
    """One grid is the other, moved by (0.1, 0.1) in every image: its own interval is wide, the difference's is not."""
    high, low = grid("high", (0.6, 0.3), (0.3, 0.6)), grid("low", (0.5, 0.2), (0.2, 0.5))
    found = compared([high, low], [0.0, 0.0], 500)
    (apart,) = found["differences"]
    volumes = [each["hypervolume"] for each in found["models"]]
    assert apart["hypervolume"] == pytest.approx(volumes[0]["value"] - volumes[1]["value"])
    assert volumes[0]["value"] == pytest.approx(float(hypervolume(high.means(), [0, 0])))
    low_end, high_end = apart["over_prompts"]
    wide = volumes[0]["over_prompts"]
    assert 0 < low_end <= apart["hypervolume"] <= high_end and high_end - low_end < 0.5 * (wide[1] - wide[0])
    assert apart["p"] == pytest.approx(2**-3)  # four prompts allow no less
    same = compared([high, high], [0.0, 0.0], 50)["differences"][0]
    assert same["hypervolume"] == 0 and same["over_prompts"] == [0, 0]


def test_the_floor_is_the_lowest_score_that_there_can_be() -> None:
    one, other = grid("one", (0.6, 0.3), (0.3, 0.6)), grid("other", (0.5, 0.2), (0.2, 0.5))
    lowest = min(each.means()[:, 1].min() for each in (one, other))
    assert floor_of([one, other]) == [0.0, pytest.approx(lowest)]


def test_a_grid_for_json() -> None:
    found = compared([grid("one", (0.6, 0.3), (0.3, 0.2))], [0.0, 0.0], 50)
    first, second = found["models"][0]["points"]
    assert (first["mixture"], first["on_front"], second["on_front"]) == ({"p": 1.0, "q": 0.0}, True, False)
    assert first["scores"]["p"]["low"] < first["scores"]["p"]["mean"] < first["scores"]["p"]["high"]
    assert found["scores"] == ["p", "q"] and found["differences"] == []
