"""A resumed run has the prompts, rewards and images that it started with, or says that it has others."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from program import Refused
from resumed_runs import BUDGET, metrics, state, train

from flowward import prompts, rewards
from flowward.pages import report
from flowward.training import config, inputs
from flowward.training.datasets import Exemplars, Preferences
from flowward.training.record import Record

HERE = ("--precision", "float32", "--iterations", "1")
BRIGHT = "def bright(images, prompts, metadata=None):\n    return {sign}images.mean((1, 2, 3))\n"


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with prompts and a reward, which is the working directory."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.chdir(folder)
    Path("mine.txt").write_text("a red circle\na blue square\n")
    Path("r.py").write_text(BRIGHT.format(sign=""))
    return folder


@pytest.fixture
def begun(tiny: str, files: Path, elsewhere_report: None) -> Path:
    """A run of one iteration that depends on them."""
    own = [*BUDGET, "--reward", "r.py:bright", "--evaluation.rewards", "r.py:bright", "--prompts", "mine.txt"]
    train(*own, *HERE, "--model", tiny, "--reward-buffer", "8", "--output", "../run")
    return files.parent / "run"


@pytest.fixture
def elsewhere_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page takes longer than the run."""
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")


def test_changed_prompts_and_code_are_refused_by_name(begun: Path, refused: Refused) -> None:
    Path("mine.txt").write_text("a cat\na dog\nthree cats\n")
    Path("r.py").write_text(BRIGHT.format(sign="-"))
    before = {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()}
    said = refused("train", "--resume", begun, "--iterations", "2")
    assert said == (
        f"the inputs of {begun} have changed since it was started: prompts {Path('mine.txt').absolute()} (2 before, 3 "
        "now), the code of reward r.py:bright; restore them, or add --changed-inputs to continue with the new ones"
    )
    assert {path: path.read_bytes() for path in begun.rglob("*") if path.is_file()} == before


def test_changed_inputs_are_allowed_recorded_and_told(
    begun: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards of the old code are forgotten, since they cannot be compared. Later the new inputs are the known ones."""
    assert len(state(begun)["rewards"]["kept"]) == 2
    Path("r.py").write_text(BRIGHT.format(sign="-"))
    train("--resume", begun, "--iterations", "2", "--changed-inputs")
    said = "the run continues with other inputs: the code of reward r.py:bright"
    assert f"warning: {said}" in capsys.readouterr().out
    assert Record(begun).changes() == [{"iteration": 1, "changed": ["the code of reward r.py:bright"]}]
    kept = state(begun)["rewards"]["kept"]
    assert all((rows < 0).all() for rows in kept.values())
    train("--resume", begun, "--iterations", "3")
    assert "continues with other inputs" not in capsys.readouterr().out
    monkeypatch.undo()
    page = report.write(begun).read_text("utf-8")
    assert "After iteration 1 the run continued with other inputs: the code of reward r.py:bright." in page
    assert "the two evaluations differ in rewards and cannot be compared" in page


def test_a_comment_in_the_evaluation_alone_is_seen(begun: Path, refused: Refused) -> None:
    """Both rewards come from one file, which is named once."""
    Path("r.py").write_text(BRIGHT.format(sign="") + "# better\n")
    assert refused("train", "--resume", begun, "--iterations", "2").count("the code of") == 1


def test_files_of_the_same_names_elsewhere_are_not_used(begun: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = begun.parent / "other"
    other.mkdir()
    (other / "mine.txt").write_text("a cat\n")
    (other / "r.py").write_text(BRIGHT.format(sign="-"))
    monkeypatch.chdir(other)
    train("--resume", begun, "--iterations", "2")
    written = yaml.safe_load((begun / "config.yaml").read_text())
    assert written["prompts"] == str(begun.parent / "files/mine.txt")
    assert written["reward"] == [str(begun.parent / "files/r.py:bright")]
    line = metrics(begun)[-1]
    assert line["reward"] > 0 and list(line["evaluation"]["scores"]) == ["r.py:bright"]


def test_inputs_may_move_and_may_be_chosen_anew(begun: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the same content is no change; another file that the user names is one that is told."""
    Path("moved.txt").write_bytes(Path("mine.txt").read_bytes())
    train("--resume", begun, "--iterations", "2", "--prompts", "moved.txt")
    assert "continues with other inputs" not in capsys.readouterr().out
    Path("more.txt").write_text("two rings\n")
    train("--resume", begun, "--iterations", "3", "--prompts", "more.txt", "--reward", "balance")
    (change,) = Record(begun).changes()
    assert change["iteration"] == 2 and len(change["changed"]) == 3
    moved, more = (Path(name).absolute() for name in ("moved.txt", "more.txt"))
    assert f"prompts {more} (2 before, 1 now), which was {moved}" in change["changed"]
    assert {"reward r.py:bright (removed)", "reward balance (added)"} < {*change["changed"]}


def test_a_run_without_the_record_is_resumed_as_before(begun: Path) -> None:
    """Of an older version: it gets one."""
    (begun / "inputs.json").unlink()
    Path("mine.txt").write_text("two rings\n")
    train("--resume", begun, "--iterations", "2")
    assert json.loads((begun / "inputs.json").read_text())["inputs"]["prompts"]["identity"]["prompts"] == 1


def test_a_damaged_record_is_one_sentence(begun: Path, refused: Refused) -> None:
    for text in ("", "[]", '{"inputs": [1]}', '{"inputs": {"prompts": 1}}', "{" * 100_000):
        (begun / "inputs.json").write_text(text)
        assert "inputs.json is damaged" in refused("train", "--resume", begun)


def test_the_switch_needs_a_run(refused: Refused) -> None:
    assert refused("train", "--changed-inputs") == "--changed-inputs is for runs that continue: name one with --resume"


def paint(path: str, brightness: int) -> str:
    Image.fromarray(np.full((8, 8, 3), brightness, np.uint8)).save(path)
    return path


def identity(kind: Any, path: Path) -> str:
    return str(kind.load(path).identity)


@pytest.mark.parametrize("kind", [Preferences, Exemplars])
def test_given_images_are_known_by_their_content(kind: Any, files: Path) -> None:
    row = {"prompt": "a cat", "chosen": paint("c.png", 9), "rejected": paint("r.png", 5), "image": "c.png"}
    Path("rows.jsonl").write_text(json.dumps(row))
    before = identity(kind, Path("rows.jsonl"))
    moved = Path(shutil.copytree(".", "../moved"))
    assert identity(kind, moved / "rows.jsonl") == before
    paint("../moved/c.png", 8)
    assert identity(kind, moved / "rows.jsonl") != before
    (moved / "rows.jsonl").write_text(json.dumps({**row, "prompt": "a dog"}))
    paint("../moved/c.png", 9)
    assert identity(kind, moved / "rows.jsonl") != before


def test_sources_of_edits_are_known_by_their_content(files: Path) -> None:
    Path("edits.jsonl").write_text(json.dumps({"prompt": "make it red", "source": paint("s.png", 3)}))
    before = inputs._prompts("edits.jsonl", prompts.load("edits.jsonl"))
    assert inputs._prompts("edits.jsonl", prompts.load("edits.jsonl")) == before
    paint("s.png", 200)
    assert inputs._prompts("edits.jsonl", prompts.load("edits.jsonl")) != before


OPTIONS = """
from dataclasses import dataclass

@dataclass
class Mine:
    scale: float = 1.0
    table: str = ""
    device: str = "auto"

    @property
    def identity(self):
        return {"behind": behind}

    def __call__(self, images, prompts, metadata=None):
        return self.scale * images.mean((1, 2, 3))

behind = "one model"
"""


def test_options_files_and_what_is_behind_a_reward(files: Path) -> None:
    """Options of place and speed may change. The rest may not, such as the model that a server has behind its name."""
    Path("own.py").write_text(OPTIONS)
    Path("table.csv").write_text("1")

    def found(*options: str) -> inputs.Inputs:
        placed = [rewards.located_option(f"own.py:Mine.{option}") for option in options]
        name = str(Path("own.py:Mine").absolute())
        return {"reward own.py:Mine": inputs._reward(name, placed, rewards.load(name, placed))}

    def said(before: inputs.Inputs, now: inputs.Inputs) -> list[str]:
        return [change.said for change in inputs._changes(before, now)]

    before = found("table=table.csv")
    assert said(before, found("table=table.csv", "device=cpu")) == []
    (change,) = inputs._changes(before, found("table=table.csv", "scale=2"))
    assert change.chosen and change.said.startswith("scale of reward own.py:Mine (1.0 before, 2.0 now), which was ")
    Path("table.csv").write_text("2")
    assert said(before, found("table=table.csv")) == ["the content of table of reward own.py:Mine"]
    Path("table.csv").write_text("1")
    Path("own.py").write_text(OPTIONS.replace("one model", "another model"))
    assert said(before, found("table=table.csv")) == [
        "the code of reward own.py:Mine",
        "behind of reward own.py:Mine (one model before, another model now)",
    ]


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"prompts": "mine.txt"}, lambda found: found.prompts),
        ({"prompts": "held-out:mine.txt"}, lambda found: found.prompts.removeprefix("held-out:")),
        ({"prompts": "hf:data:test"}, lambda found: found.prompts.removeprefix("hf:").removesuffix(":test")),
        ({"reward": ["r.py:bright=0.5"]}, lambda found: found.reward[0].removesuffix(":bright=0.5")),
        ({"reward_options": ["judge.template=t.yaml"]}, lambda found: found.reward_options[0].partition("=")[2]),
        ({"preferences": "p.jsonl"}, lambda found: str(found.preferences)),
        ({"exemplars": "p.jsonl"}, lambda found: str(found.exemplars)),
        ({"model": "data"}, lambda found: found.model),
        ({"evaluation": {"prompts": "mine.txt"}}, lambda found: found.evaluation.prompts),
        ({"evaluation": {"guard": ["r.py:bright"]}}, lambda found: found.evaluation.guard[0].removesuffix(":bright")),
    ],
    ids=lambda given: str(given) if isinstance(given, dict) else "",
)
def test_every_setting_that_names_a_file_is_absolute(
    files: Path, changes: dict[str, Any], place: Callable[[Any], str]
) -> None:
    for name in ("p.jsonl", "t.yaml"):
        Path(name).write_text("")
    Path("data").mkdir()
    Path("data/model_index.json").write_text("{}")
    given = config.from_dict(changes)
    found = place(inputs.located(given))
    assert Path(found).is_absolute() and Path(found).exists()
    assert place(inputs.located(given, given)) == place(given)  # of an older run: it means what it meant


def test_names_of_other_things_stay_as_they_are(files: Path) -> None:
    """A folder called like a built-in set, or like a template, is not what is meant."""
    for name in ("scenes", "geneval", "edit"):
        Path(name).mkdir()
    names = {"prompts": "geneval", "reward": ["pickscore=2", "http://127.0.0.1:8000"], "model": "scenes"}
    given = config.from_dict({**names, "reward_options": ["judge.template=edit", "judge.server=http://x/v1"]})
    assert inputs.located(given) == given


def test_the_editor_does_not_change_the_code_that_runs(files: Path) -> None:
    """The hash is that of the code that was loaded, whatever the file holds later; helpers count too."""
    Path("helper.py").write_text("SIGN = 1\n")
    Path("r.py").write_text("import helper\n" + BRIGHT.format(sign="helper.SIGN * "))
    sys.path.insert(0, str(files))
    try:
        one = rewards.load("r.py:bright")
        before = rewards.code_of(one)
        Path("r.py").write_text(Path("r.py").read_text() + "# later\n")
        assert before and rewards.code_of(one) == before != rewards.code_of(rewards.load("r.py:bright"))
        del sys.modules["helper"]
        Path("helper.py").write_text("SIGN = -1\n")
        Path("r.py").write_text(Path("r.py").read_text().removesuffix("# later\n"))
        assert rewards.code_of(rewards.load("r.py:bright")) != before
    finally:
        sys.path.remove(str(files))
        sys.modules.pop("helper", None)
    assert rewards.code_of(rewards.load("scenes")) is None and rewards.code_of(min) is None
