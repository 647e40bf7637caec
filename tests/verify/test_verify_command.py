"""The command `flowward verify`: a user's own algorithm, bad input, and the files that it writes."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from program import alone
from spoilt_algorithms import mine

from flowward.algorithms import DGPO, AdvantageFlow
from flowward.cli import main
from flowward.verify import load, table, verify

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
    assert "20 laws, all hold." in capsys.readouterr().out
    assert main(["verify", "--algorithm", f"{own}:made"]) == 0
    capsys.readouterr()
    assert main(["verify", "--algorithm", f"{own}:Wrong"]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert "20 laws, 2 of them broken." in out
    assert "wrong sign: moves away" in out
    assert main(["verify", "dpo", "--algorithm", f"{own}:Right"]) == 0
    out = capsys.readouterr().out
    assert "\ndpo" in out
    assert f"\n{own}:Right" in out


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("{own}", "name your algorithm as package.module:Class, not '{own}'"),
        (":Right", "name your algorithm as package.module:Class"),
        ("nowhere.at.all:Right", "'nowhere.at.all' cannot be imported: ModuleNotFoundError"),
        ("{own}_bad:Right", "cannot be imported: ZeroDivisionError"),
        ("{own}:Rihgt", "unknown class 'Rihgt'; did you mean 'Right'?"),
        ("{own}:Needy", "cannot be created without arguments: TypeError"),
        ("{own}:Bare", "is not an algorithm: it has no behaviour, rollout, copies, guidance, skips_silent, anchors"),
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
