"""docs/same.md: each statement has its law, each law that it names holds, and how far fixed anchors fall short."""

from __future__ import annotations

import math
import re
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from spoilt_algorithms import spoilt
from torch import Tensor

from flowward import ALGORITHMS
from flowward.system.streams import generator
from flowward.verify import Check, same, verify
from flowward.verify.worlds import (
    Discrete,
    Function,
    Gaussian,
    Quadratic,
    covariance_with_velocity,
    kl_of_tilt,
    kl_tilt,
    weight_given_noisy,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "same.md").read_text("utf-8")
NAMED = ("advantageflow", "flowawr", "diffusion_nft", "awm", "ram", "rvm", "vgrpo", "meanflow_advantage")


@cache
def checks() -> list[Check]:
    return verify(NAMED).checks


def cited() -> list[tuple[str, str]]:
    """The laws that the page names: an algorithm in backticks and a colon, then one law or several."""
    found = []
    for name, laws in re.findall(r"`(\w+)`: ((?:`[^`]+`(?:, )?)+)", PAGE):
        if name in NAMED:
            found += [(name, law.replace(r"\|", "|")) for law in re.findall(r"`([^`]+)`", laws)]
    return found


# The page


@pytest.mark.parametrize(("name", "law"), cited())
def test_a_law_that_the_page_names_holds(name: str, law: str) -> None:
    found = [each for each in checks() if each.algorithm == name and each.law.startswith(law)]
    assert found and all(each.holds for each in found)


def test_every_statement_has_a_law_and_every_row_a_line() -> None:
    """Tables with a column of laws have no empty cell, and the page has a row for each `Row` of the code."""
    assert len(cited()) > 30
    for lines in re.findall(r"\| [^\n]+law[^\n]*\|\n\|[- |]+\|\n((?:\|[^\n]+\n)+)", PAGE):
        assert all("`" in line.rstrip("|\n ").rpartition("| ")[2] for line in lines.splitlines())
    rows = {(name, row.law.partition(":")[0]) for name, rows in same.ROWS.items() for row in rows}
    assert rows <= set(cited())
    tests = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert tests and all(f"def {name}(" in (ROOT / file).read_text("utf-8") for file, name in tests)


@pytest.mark.parametrize("name", NAMED)
def test_a_wrong_row_is_reported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss with another anchor weight breaks its rows; DiffusionNFT's bare one has no class to spoil."""
    if name == "diffusion_nft":
        return

    def change(loss: Tensor, models: object, points: object) -> Tensor:
        v = models.at("policy", points)  # type: ignore[attr-defined]
        return loss + 0.1 * ((v - models.at("reference", points)) ** 2).flatten(1).mean(1)  # type: ignore[attr-defined]

    monkeypatch.setitem(ALGORITHMS, name, spoilt(ALGORITHMS[name], change))
    broken = [each for each in same.laws(name, ALGORITHMS[name]) if not each.holds]
    assert len(broken) == len(same.ROWS[name])


# T7 and T8 of the working notes: how far RAM's rest point is from the tilt, and what would come closer


def test_7_numbers_of_a_quadratic_reward() -> None:
    """N(0, 1), R = -x^2/2, tau = 1, at the exact tilt N(0, 1/2): v* - v_ref, Cov under the tilt, Cov under p."""
    p, reward = Gaussian(torch.zeros(1), torch.eye(1)), Quadratic(torch.eye(1), torch.zeros(1))
    q = kl_tilt(p, reward, 1.0)
    table = {
        (0.9, 1.0): (0.067335, 0.033874, 0.133849),
        (0.5, 0.5): (0.333333, 0.222222, 0.500000),
        (0.2, 1.3): (0.424837, 0.401235, 0.449827),
    }
    for (t, x), expected in table.items():
        at = torch.tensor([[x]]).double(), torch.tensor([t]).double()
        gap = q.velocity(*at) - p.velocity(*at)
        found = (gap, *(covariance_with_velocity(world, reward, *at) for world in (q, p)))
        assert [each.item() for each in found] == pytest.approx(expected, abs=1e-6)


STRENGTHS = (0.2, 0.1, 0.05)


def world() -> tuple[Discrete, Function]:
    """16 atoms in four dimensions, and the notes' reward x1^2 - x2 x3."""
    atoms = torch.randn(16, 4, generator=generator("same", 0), dtype=torch.float64)
    return Discrete(atoms, torch.ones(16)), lambda x: x[:, 0] ** 2 - x[:, 1] * x[:, 2]


def gaps(strength: float) -> dict[str, float]:
    """Relative distances from v_q - v_p of the exact tilt q = p exp(strength R) / Z, at states of q."""
    p, reward = world()
    tilts = [kl_tilt(p, reward, 1 / (strength * share)) if share else p for share in (0.0, 0.5, 1.0)]
    q = tilts[2]
    stream = generator("same states", 0)
    t = 0.1 + 0.9 * torch.rand(400, generator=stream, dtype=torch.float64)
    noise = torch.randn(400, 4, generator=stream, dtype=torch.float64)
    x = (1 - t)[:, None] * q.sample(400, stream) + t[:, None] * noise
    start, half, end = (strength * covariance_with_velocity(tilt, reward, x, t) for tilt in tilts)
    exact = q.velocity(x, t) - p.velocity(x, t)
    rules = {
        "RAM": end,
        "first step": start,
        "velocity": weight_given_noisy(q, p, x, t)[:, None] * exact,
        "mid-point": half,
        "Simpson": (start + 4 * half + end) / 6,
    }
    return {
        name: ((found - exact).square().sum() / exact.square().sum()).sqrt().item() for name, found in rules.items()
    }


def test_8_how_fast_the_gap_to_the_tilt_closes() -> None:
    """v_q - v_p is the integral of Cov over the path of tilts (I3): RAM takes its right end, the first step its left.

    Halving the strength halves their gaps, quarters that of the middle, and divides Simpson's by 16.
    """
    found = [gaps(strength) for strength in STRENGTHS]
    order = {name: [math.log2(one[name] / two[name]) for one, two in pairwise(found)] for name in found[0]}
    for name, expected in (("RAM", 1), ("first step", 1), ("velocity", 1), ("mid-point", 2), ("Simpson", 4)):
        assert order[name][-1] == pytest.approx(expected, abs=0.2), (name, order[name])
    assert found[0]["RAM"] == pytest.approx(found[0]["first step"], rel=0.35)
    assert found[0]["Simpson"] < found[0]["mid-point"] / 5 < found[0]["RAM"] / 10


def test_8_in_the_order_of_the_notes() -> None:
    """At a tilt of about one nat: Simpson, mid-point, RAM's rule, the first step, FlowAWR's velocity form."""
    p, reward = world()
    strength = 1.0
    assert 0.2 < kl_of_tilt(p, reward, 1 / strength) < 2
    found = gaps(strength)
    assert sorted(found, key=found.__getitem__) == ["Simpson", "mid-point", "RAM", "first step", "velocity"]
