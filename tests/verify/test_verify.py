"""`flowward verify`: its laws hold, and each kind of mistake that one can make breaks the laws that name it."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from program import alone
from rich.console import Console
from torch import Tensor

from flowward import ALGORITHMS
from flowward.algorithms import AWM, DGPO, FDFO, AdvantageFlow, policy_gradient
from flowward.cli import main
from flowward.verify import Check, Report, check, load, table, verify

algorithms = pytest.mark.parametrize("name", ALGORITHMS)
Loss = tuple[Tensor, dict[str, Tensor]]


@pytest.fixture(scope="module")
def report() -> Report:
    """Everything, as the command does it: seconds of work (not of waiting for a machine that others use)."""
    started = time.process_time()
    found = verify()
    assert time.process_time() - started < 60
    return found


def broken(found: Report, words: str) -> list[Check]:
    """The failures whose law has these words in it."""
    return [each for each in found.failures if words in each.law]


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
    assert sum(each.part == "protocol" for each in mine) == 19
    assert sum(each.part == "equation" for each in mine) >= 4
    assert any(each.law.startswith("on policy") and each.part == "equation" for each in mine)
    assert len({each.law for each in mine}) == len(mine)
    assert all(each.source for each in mine)


def test_laws_are_tight(report: Report) -> None:
    """Nothing but sums over samples, and steps of an ODE, may be off by more than rounding."""
    loose = {each.law for each in report.checks if each.tolerance > 1e-9}
    known = ("central differences", "cosine", "Var(g_FM)", "linear reward", "fit", "standard deviation")
    known += ("over what its level calls for", "the code's 2.25", "variance 1")  # as printed, or with a floor
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
    assert exact["chi_square"] == {("advantageflow", "gamma 1.1, bare"), ("awm", "uniform, tether 1.1")}
    by_name = {(row.algorithm, row.method): row.kl for row in report.distances}
    assert by_name["diffusion_nft", "beta 1.1, bare"] == pytest.approx(by_name["advantageflow", "1-A, bare"])


def test_the_same_again(report: Report) -> None:
    """Nothing random is left to chance, and names restrict what is done."""
    again = verify(["awm"])
    assert again.checks == [each for each in report.checks if each.algorithm == "awm"]
    assert again.distances == [row for row in report.distances if row.algorithm == "awm"]


# What is broken by what


def spoilt(right: Any, change: Callable[..., Any]) -> Any:
    """The class of an algorithm whose loss is replaced by change(loss, models, points)."""

    class Spoilt(right):
        def loss(self, models: Any, points: Any) -> Loss:
            loss, watched = super().loss(models, points)
            return change(loss, models, points), watched

    return Spoilt


def spoilt_in_place(monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[..., Any]) -> Report:
    """What is found where the algorithm of that name is spoilt."""
    monkeypatch.setitem(ALGORITHMS, name, spoilt(ALGORITHMS[name], change))
    return verify([name])


def mine(change: Callable[..., Any], **setting: Any) -> Any:
    """An algorithm of one's own, spoilt in one place."""
    return spoilt(AdvantageFlow, change)(**setting)


@algorithms
def test_a_wrong_sign_is_reported_as_such(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The whole loss turned round."""
    found = spoilt_in_place(monkeypatch, name, lambda loss, *_: -loss)
    (direction,) = broken(found, "sign of A (step down the loss)")
    assert (direction.measured, direction.remark) == (-1, "wrong sign: moves away from better samples")
    (covariance,) = broken(found, "cosine of the expected gradient")
    assert covariance.measured < -0.9
    assert covariance.remark.startswith("wrong sign")
    own = [each for each in found.failures if each.part == "equation" and each.law.startswith("on policy")]
    assert own
    assert all(each.remark == "wrong sign, -1 times" for each in own)


@pytest.mark.parametrize("name", ["advantageflow", "awm", "diffusion_nft", "flowawr"])
def test_a_maximum_is_no_minimum(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Fields and resting points of the negative loss are where they were, and yet laws about them break."""
    if name == "diffusion_nft":  # whose bare equation has no class
        right = check.rests("", "", lambda v: (v**2).mean(1), torch.zeros(2, 3).double())
        wrong = check.rests("", "", lambda v: -(v**2).mean(1), torch.zeros(2, 3).double())
        assert right.holds
        assert not wrong.holds
        return
    found = spoilt_in_place(monkeypatch, name, lambda loss, *_: -loss)
    laws = [each for each in found.checks if "over all samples" in each.law or "rests" in each.law]
    assert len(laws) >= 2
    assert not any(each.holds for each in laws)


@algorithms
def test_a_wrong_size_is_reported_as_such(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Twice the loss: the protocol does not mind, the equation does."""
    found = spoilt_in_place(monkeypatch, name, lambda loss, *_: 2 * loss)
    assert not any(each.part == "protocol" for each in found.failures)
    own = [each for each in found.failures if each.law.startswith("on policy")]
    assert own
    assert all(each.remark == "wrong size, 2 times" for each in own)


def also(name: str, *, known: bool) -> Callable[..., Tensor]:
    """Another evaluation, whether or not its result is known."""

    def change(loss: Tensor, models: Any, points: Any) -> Tensor:
        asked = models.at(name, points) if known else getattr(models, name)(points.x_t, points.t, points.condition)
        return loss + 0 * asked.detach().flatten(1).sum(1)

    return change


MISTAKES: dict[str, tuple[Any, str, str]] = {
    "a scalar": (mine(lambda loss, *_: loss.mean()), "exceptions to: one loss per point", "shape []"),
    "nan at the end": (
        mine(lambda loss, m, points: loss / points.t),
        "not finite, t = 0",
        "nan or infinite",
    ),
    "policy twice": (mine(also("policy", known=False)), "evaluations of the policy per point", "not needed"),
    "known anchor": (mine(also("old", known=False)), "anchors that are known already", "models.at"),
    "undeclared anchor": (
        mine(also("reference", known=True), lam=0.0),
        "beyond those declared: policy, old",
        "reference",
    ),
    "mean over the batch": (
        mine(lambda loss, *_: loss - loss.detach().mean()),
        "loss of a unit, alone",
        "",
    ),
    "detached": (mine(lambda loss, *_: loss.detach() + 0 * loss), "weights of the policy", "nothing is trained"),
    "pull to 0": (
        mine(lambda loss, m, points: loss + (m.at("policy", points) ** 2).flatten(1).mean(1)),
        "all rewards equal: largest gradient",
        "not 0",
    ),
    "raises": (mine(lambda *_: {}["key"]), "One loss per point", "KeyError: 'key'"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_breaks_the_law_that_names_it(mistake: str) -> None:
    algorithm, words, remark = MISTAKES[mistake]
    found = verify([], {"mine": algorithm})
    (check,) = broken(found, words)
    assert remark in check.remark
    assert check.algorithm == "mine"


def turned(right: Any) -> Any:
    return lambda *given, **named: -right(*given, **named)


def scaled(alpha: float, gamma: float) -> Any:
    """Of the two numbers of every ratio."""

    def change(right: Any) -> Any:
        def scales(*given: Any) -> Any:
            a, g = right(*given)
            return alpha * a, gamma * g

        return scales

    return change


SHARED: dict[str, tuple[str, Any, tuple[str, ...]]] = {  # what is replaced, by what, and the laws that name it
    "the loss turned round": (
        "policy_gradient",
        turned,
        ("sign of A (step down the loss)", "on policy:", "log rho is"),
    ),
    "alpha turned round": (
        "ratio_scales",
        scaled(-1, 1),
        ("sign of A (step down the loss)", "on policy:", "log rho is"),
    ),
    "gamma turned round": ("ratio_scales", scaled(1, -1), ("log rho is", "-gamma mean(d^2), below 0")),
    "alpha halved": ("ratio_scales", scaled(0.5, 1), ("on policy:", "log rho is")),
    "the divergence halved": ("divergence_scale", lambda right: lambda *given: right(*given) / 2, ("divergence `",)),
}


@pytest.mark.parametrize("mistake", SHARED)
@pytest.mark.parametrize("name", ["flow_grpo", "tempflow_grpo"])
def test_a_mistake_in_the_shared_equation_is_reported(monkeypatch: pytest.MonkeyPatch, name: str, mistake: str) -> None:
    """Each law that names it breaks, in every algorithm that uses it; ratio 1 on policy is still ratio 1."""
    where, change, laws = SHARED[mistake]
    monkeypatch.setattr(policy_gradient, where, change(getattr(policy_gradient, where)))
    found = verify([name])
    for words in laws:
        assert broken(found, words), words
    protocol = [each.remark for each in found.failures if each.part == "protocol"]
    if "halved" in mistake:
        assert not protocol
    else:  # or exp(gamma mean(d^2)) overflows
        assert "wrong sign: moves away from better samples" in protocol or set(protocol) == {"nan or infinite"}


def test_wrong_credit_is_told_from_a_wrong_loss() -> None:
    """The loss follows A as it should, so only what compares with rewards is broken."""
    wrong = AdvantageFlow()
    object.__setattr__(wrong, "credit", lambda rewards, group: -AdvantageFlow().credit(rewards, group))
    found = verify([], {"mine": wrong})
    assert len(found.failures) == 2
    assert broken(found, "credit: sign of A(best)")[0].remark == "wrong sign: credit rewards the worse samples"
    assert broken(found, "Cov(R, u | x_t)")[0].remark == "wrong sign: against the reward"


def test_differences_that_point_to_the_other_sample() -> None:
    """Turned round together, delta and the sign of the loss would cancel: delta is compared with rewards."""
    wrong = FDFO()

    class Swapped:
        unit = 1

        def __init__(self, rollout: Any, key: Any):
            self.right = FDFO().points(rollout, key)

        def __len__(self) -> int:
            return len(self.right)

        def take(self, numbers: Tensor) -> Any:
            points = self.right.take(numbers)
            return replace(points, delta=-points.delta)  # type: ignore[operator]

    object.__setattr__(wrong, "points", Swapped)
    (check,) = verify([], {"mine": wrong}).failures
    assert (check.measured, check.remark) == (-1, "wrong sign: another sample's")


def test_copies_that_are_missing() -> None:
    class Forgetful(AWM):
        @property
        def copies(self) -> Any:
            return {}

    (check,) = verify([], {"mine": Forgetful()}).failures
    assert ("copies" in check.law, check.measured, check.remark) == (True, 1, "old")


def test_an_algorithm_that_takes_no_groups() -> None:
    wrong = DGPO()
    object.__setattr__(wrong, "points", lambda rollout, key: 1 / 0)
    (check,) = verify([], {"mine": wrong}).checks
    assert (check.holds, check.remark) == (False, "ZeroDivisionError: division by zero")


def test_comparisons() -> None:
    """A sign, a size, another direction, nothing, nan; errors are relative to the largest expected value."""
    expected = torch.tensor([3.0, -4.0])
    remarks = {
        "wrong sign, -1 times": -expected,
        "wrong size, 0.5 times": expected / 2,
        "another direction (cosine 0)": torch.tensor([4.0, 3.0]),
        "wrong sign, roughly": torch.tensor([-3.0, 4.1]),
        "0": torch.zeros(2),
        "not finite": torch.tensor([3.0, math.nan]),
    }
    for remark, found in remarks.items():
        each = check.compared("", "", found, expected)
        assert (each.holds, each.remark) == (False, remark)
    right = check.compared("", "", expected + torch.tensor([0.0, 0.004]), expected, 0.0011)
    assert right.holds
    assert (right.error, right.expected) == pytest.approx((0.001, math.sqrt(12.5)), rel=1e-4)
    zero = check.compared("", "", torch.tensor([0.0, -1e-3]), torch.zeros(2))
    assert (zero.holds, zero.measured, zero.remark) == (False, pytest.approx(1e-3), "not 0")


# The command


OWN = """
from dataclasses import replace
from io import StringIO
from flowward.algorithms import AdvantageFlow

class Right(AdvantageFlow):
    pass

class Wrong(AdvantageFlow):
    def loss(self, models, points):
        return super().loss(models, replace(points, advantage=-points.advantage))

class Needy(AdvantageFlow):
    def __init__(self, number):
        super().__init__()

class Bare:
    credit = None

made = AdvantageFlow(gamma=1.1)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"own_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / f"{name}_bad.py").write_text("1 / 0")
    return name


def test_an_algorithm_of_ones_own(own: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--algorithm", f"{own}:Right"]) == 0
    assert "19 laws, all hold." in capsys.readouterr().out
    assert main(["verify", "--algorithm", f"{own}:made"]) == 0
    capsys.readouterr()
    assert main(["verify", "--algorithm", f"{own}:Wrong"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "19 laws, 2 of them broken." in out
    assert "wrong sign: moves away" in out
    assert main(["verify", "dpo", "--algorithm", f"{own}:Right"]) == 0
    out = capsys.readouterr().out
    assert "\ndpo" in out
    assert f"\n{own}:Right" in out


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("{own}", "named package.module:Class, not '{own}'"),
        (":Right", "named package.module:Class"),
        ("nowhere.at.all:Right", "'nowhere.at.all' cannot be imported: ModuleNotFoundError"),
        ("{own}_bad:Right", "cannot be imported: ZeroDivisionError"),
        ("{own}:Rihgt", "unknown class 'Rihgt'; did you mean 'Right'?"),
        ("{own}:Needy", "cannot be made without arguments: TypeError"),
        ("{own}:Bare", "is no algorithm: it has no behaviour, rollout, points, copies, guidance, anchors, loss"),
    ],
)
def test_a_bad_import_path_is_one_sentence(
    own: str, capsys: pytest.CaptureFixture[str], path: str, sentence: str
) -> None:
    assert main(["verify", "--algorithm", path.format(own=own)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert sentence.format(own=own) in said.err
    assert said.err.count("\n") == 1
    with pytest.raises(ValueError, match=re.escape(sentence.format(own=own))):
        load(path.format(own=own))


def test_an_unknown_name_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "awn"]) == 2
    assert capsys.readouterr().err == "flowward: unknown algorithm 'awn'; did you mean 'awm'?\n"


def test_what_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "a" / "b"
    assert main(["verify", "flowawr", "crd", "--output", str(folder)]) == 0
    assert str(folder / "verify.html") in capsys.readouterr().out.replace("\n", "")
    data = json.loads((folder / "verify.json").read_text())
    assert data["holds"] is True
    assert {each["algorithm"] for each in data["checks"]} == {"flowawr", "crd"}
    assert all(each["holds"] for each in data["checks"])
    assert {row["method"] for row in data["distances"]} == {"exact", "velocity", "released"}
    page = (folder / "verify.html").read_text()
    assert f"{len(data['checks'])} laws, all hold." in page
    assert all(f"<h2>{name}</h2>" in page for name in ("flowawr", "crd"))
    assert "on policy, released" in page
    assert not re.search(r"""(src|href)=["']?https?:""", page)


def test_what_is_not_finite_can_be_written(tmp_path: Path) -> None:
    """JSON knows neither nan nor infinity; remarks are escaped on the page."""
    found = verify([], {"mine <b>": mine(lambda *_: {}["<i>"])})
    table.write(found, tmp_path)
    data = json.loads((tmp_path / "verify.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert data["holds"] is False
    assert {each["error"] for each in data["checks"] if not each["holds"]} == {None}
    page = (tmp_path / "verify.html").read_text()
    assert "<h2>Broken</h2>" in page
    assert "mine &lt;b&gt;" in page
    assert "<i>" not in page.split("<body>")[1]


@pytest.mark.parametrize("full", [False, True])
def test_the_table_fits_100_columns(report: Report, full: bool) -> None:
    console = Console(width=100, record=True, file=StringIO())
    table.show(report, full, console)
    lines = console.export_text().splitlines()
    assert max(len(line) for line in lines) <= 100
    text = "\n".join(lines)
    assert text.count("19 laws of the protocol") == (0 if full else len(ALGORITHMS))
    assert ("values of loss and gradient" in text) == full
    assert "…" not in text
    assert f"{len(report.checks)} laws, all hold." in text


def test_a_broken_law_of_the_protocol_is_not_folded_away(report: Report) -> None:
    first = next(each for each in report.checks if each.part == "protocol")
    spoiled = replace(first, error=1.0, remark="this is why")
    console = Console(width=100, record=True, file=StringIO())
    table.show(replace(report, checks=[spoiled, *report.checks[1:]]), False, console)
    text = console.export_text()
    assert "18 laws of the protocol" in text
    assert "→ this is why" in text
    assert "1 of them broken" in text


def test_help_is_quick_and_imports_no_torch() -> None:
    code = (
        "import sys\nfrom flowward.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "print('torch' in sys.modules)"
    )
    out, seconds = alone(code, "verify", "--help")
    assert seconds < 3
    assert out.splitlines()[-1] == "False"
    assert all(word in out for word in ("--algorithm", "--output", "package.module:Class"))


def test_an_algorithm_of_ones_own_is_measured_against_the_optima() -> None:
    """Without its denominators and the reference, gamma 1.1 ends at the chi^2 tilt."""
    mine = AdvantageFlow(gamma=1.1, lam=0.0, denominator=False)
    (row,) = verify([], {"mine": mine}).distances
    assert row.algorithm == "mine"
    assert row.chi_square < 1e-9 < 0.05 < row.kl
    assert not verify([], {"mine": DGPO()}).distances
