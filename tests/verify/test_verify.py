"""`flowward verify`: all laws hold, and the printed table."""

from __future__ import annotations

import time
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from tiny_runs import REWARDED

from flowward import ALGORITHMS
from flowward.algorithms.algorithm import differentiates
from flowward.verify import Report, table, verify

algorithms = pytest.mark.parametrize("name", ALGORITHMS)


@pytest.fixture(scope="module")
def report() -> Report:
    """Everything, as the command does it: seconds of work (not of waiting for a machine that others use)."""
    started = time.process_time()
    found = verify()
    assert time.process_time() - started < 60
    return found


# What holds


def test_every_law_holds(report: Report) -> None:
    assert [(each.algorithm, each.law, each.error, each.remark) for each in report.failures] == []
    assert report.sentence == f"{len(report.checks)} laws, all hold."


def test_the_printed_page_is_of_these_laws(report: Report) -> None:
    """docs/verify.txt is made by hand: `flowward verify > docs/verify.txt`."""
    page = (Path(__file__).parents[2] / "docs" / "verify.txt").read_text()
    assert f"\n{report.sentence} (" in page
    for name in ALGORITHMS:
        assert f"{name}  {sum(each.algorithm == name for each in report.checks)} laws, all hold" in page


@algorithms
def test_every_algorithm_is_held_to_the_protocol_and_its_own_equation(report: Report, name: str) -> None:
    mine = [each for each in report.checks if each.algorithm == name]
    differentiated = differentiates(ALGORITHMS[name])
    of_the_protocol = 7 if differentiated else 20 if name in REWARDED else 11
    assert sum(each.part == "protocol" for each in mine) == of_the_protocol
    assert sum(each.part == "equation" for each in mine) >= 4
    first = "on policy" if name in REWARDED else "gradient"
    assert differentiated or any(each.law.startswith(first) and each.part == "equation" for each in mine)
    assert len({each.law for each in mine}) == len(mine)
    assert all(each.source for each in mine)


def test_laws_are_tight(report: Report) -> None:
    """Nothing but sums over samples, and steps of an ODE, may be off by more than rounding."""
    loose = {each.law for each in report.checks if each.tolerance > 1e-9}
    known = ("central differences", "cosine", "Var(g_FM)", "linear reward", "fit", "standard deviation")
    known += ("kappa(a) KL", "integral of (1 - t) / t")
    known += ("relative to the correct level", "the code's 2.25", "the code's 3.775")  # as printed
    known += ("variance 1", "a floor")
    known += ("finite differences", "recorded sample", "clean prediction", "t dR/df", "each trajectory")  # float32
    known += ("T42", "KL tilt", "loss is 0 there", "contrast")  # printed digits, steps of an ODE, float32
    known += ("gamma for clip(N(0, 1), 1)", "but for 0.3 %")  # printed digits; times below 0.05 are left out
    known += ("U, dU and v at", "exact change of U", "U moves by")  # as printed; dhat is a difference
    assert all(any(word in law for word in known) for law in loose)
    exact = [each for each in report.checks if each.law not in loose]
    assert len(exact) > 200
    assert max(each.error for each in exact) < 1e-10


def test_which_methods_reach_an_exact_optimum(report: Report) -> None:
    exact: dict[str, set[tuple[str, str]]] = {"kl": set(), "chi_square": set()}
    for row in report.distances:
        for optimum, members in exact.items():
            if getattr(row, optimum) < 1e-9:
                members.add((row.algorithm, row.method))
            else:
                assert 0.05 < getattr(row, optimum) < 1
    assert exact["kl"] == {("flowawr", "exact")}
    assert exact["chi_square"] == {
        ("advantageflow", "gamma 1.1, bare"),
        ("awm", "uniform, tether 1.1"),
        ("ram", "residual policy, m 1/1.1"),
        ("rvm", "gain 1, beta 1.1"),
    }
    by_name = {(row.algorithm, row.method): row.kl for row in report.distances}
    assert by_name["diffusion_nft", "beta 1.1, bare"] == pytest.approx(by_name["advantageflow", "1-A, bare"])


def test_the_same_again(report: Report) -> None:
    """Nothing random is left to chance, and names restrict what is done."""
    again = verify(["awm"])
    assert again.checks == [each for each in report.checks if each.algorithm == "awm"]
    assert again.distances == [row for row in report.distances if row.algorithm == "awm"]


# The table


@pytest.mark.parametrize("full", [False, True])
def test_the_table_fits_100_columns(report: Report, full: bool) -> None:
    console = Console(width=100, record=True, file=StringIO())
    table.show(report, full, console)
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 100
    text = "\n".join(lines)
    assert text.count("20 laws of the protocol") == (0 if full else len(REWARDED))
    assert ("values of loss and gradient" in text) == full
    assert "…" not in text
    assert f"{len(report.checks)} laws, all hold." in text


def test_a_broken_law_of_the_protocol_is_not_folded_away(report: Report) -> None:
    first = next(each for each in report.checks if each.part == "protocol")
    spoiled = replace(first, error=1.0, remark="this is why")
    console = Console(width=100, record=True, file=StringIO())
    table.show(replace(report, checks=[spoiled, *report.checks[1:]]), False, console)
    text = console.export_text()
    assert "19 laws of the protocol" in text
    assert "→ this is why" in text
    assert "1 of them broken" in text
