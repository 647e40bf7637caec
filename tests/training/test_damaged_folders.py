"""Files of a run, and files to compare, of which a part is missing or of another kind: one sentence, no traceback."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from flowward.cli import main
from flowward.evaluation import comparison, measurement
from flowward.pages import page, report
from flowward.training import config, inputs, lines
from flowward.training.guards import Watch
from flowward.training.record import Record

DATA = Path(__file__).parents[1] / "data"
ODD: tuple[Any, ...] = (None, True, -1, 1e300, "", "x", [], [1], {}, {"x": 1}, [[[]]], "\ud800", 10**30)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every container with each of its keys."""
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def spoilt(tree: Any, seed: int) -> Any:
    """A copy with one part missing or another."""
    tree, chance = json.loads(json.dumps(tree)), random.Random(seed)
    where, key = chance.choice(list(places(tree)))
    if chance.random() < 0.25:
        del where[key]
    else:
        where[key] = chance.choice(ODD)
    return tree


def cases(tree: Any, number: int) -> Iterator[Any]:
    yield from (spoilt(tree, seed) for seed in range(number))
    yield from (None, 5, "x", [], {})


def one_sentence(work: Callable[[], object]) -> None:
    with suppress(ValueError, OSError):
        work()


def test_measurements(tmp_path: Path) -> None:
    """They are read and compared with whole ones, or refused."""
    whole = json.loads((DATA / "measured.json").read_text("utf-8"))
    file, good = tmp_path / "bad.json", measurement.read(DATA / "measured.json")
    refused = 0
    for tree in cases(whole, 400):
        file.write_text(json.dumps(tree), "utf-8")
        try:
            found = measurement.told_apart([("a", each) for each in [*good, *measurement.read(file)]])
        except ValueError as error:
            refused += 1
            assert str(error) == f"{file} was not written by `flowward eval --json`, or is damaged"
            continue
        with suppress(ValueError):
            changes = comparison.differences(found)
            comparison.warnings(found)
            comparison.hacking(found, changes)
            [each.summary() for each in found]
        Watch(tmp_path)
    assert refused > 50
    for text in ("", "[" * 100_000, "\0", '{"texts": '):
        file.write_text(text)
        with pytest.raises(ValueError, match="or is damaged"):
            measurement.read(file)


def test_settings(tmp_path: Path) -> None:
    folder = Record(tmp_path)
    for tree in cases(yaml.safe_load((DATA / "run/config.yaml").read_text("utf-8")), 400):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree), "utf-8")
        one_sentence(folder.origin)
        one_sentence(lambda: config.from_dict(folder.config()))
    for text in ("a: " + "[" * 5000, "a: 2020-13-45", "&a [*a]", "a: !!python/object:os.system {}", "\0"):
        (tmp_path / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml"):
            folder.config()


def test_lines_and_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(page.environment().globals, "asset", lambda name: "")  # 1.2 MB that nothing can damage
    run = Path(shutil.copytree(DATA / "run", tmp_path / "run"))
    summary = {"command": "flowward train", "finished": True, "iterations": 1, "machine": "one", "version": "1"}
    known = {"inputs": {}, "changes": [{"iteration": 1, "changed": ["prompts"]}]}
    for name, whole in (("summary.json", summary), ("inputs.json", known)):
        for tree in cases(whole, 60):
            (run / name).write_text(json.dumps(tree), "utf-8")
            one_sentence(lambda: report.write(run))
        (run / name).write_text(json.dumps(whole))
    first, second = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    for line in (first, second):
        for tree in cases(json.loads(line), 150):
            (run / "metrics.jsonl").write_text("\n".join([first, json.dumps(tree), second]), "utf-8")
            one_sentence(lambda: report.write(run))
            one_sentence(Record(run).origin)
    assert len(lines.readable((run / "metrics.jsonl").read_text("utf-8"))) == 2
    for tree in cases(yaml.safe_load((run / "config.yaml").read_text("utf-8")), 150):
        (run / "config.yaml").write_text(yaml.safe_dump(tree), "utf-8")
        one_sentence(lambda: report.write(run))


def test_inputs(tmp_path: Path) -> None:
    now: inputs.Inputs = {
        "prompts": {"named": "/a.txt", "identity": {"hash": "abc", "prompts": 3}},
        "reward x": {"named": "x", "identity": {"kind": "k", "code_sha256": "c", "files": {"t": "f"}, "t": "/t"}},
    }
    for tree in cases({"inputs": now, "changes": []}, 200):
        (tmp_path / "inputs.json").write_text(json.dumps(tree), "utf-8")
        one_sentence(lambda: inputs.compared(tmp_path, now))
        one_sentence(Record(tmp_path).changes)


def test_the_program_says_it_in_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Path(shutil.copytree(DATA / "run", tmp_path / "run"))
    whole = (run / "config.yaml").read_text("utf-8")
    for text in ("run: [1]\n", "model: 7\n", "algorithm: [ddpo]\n", "evaluation: x\n", "reward: {a: 1}\n"):
        (run / "config.yaml").write_text(text)
        for words in (["report", run], ["train", "--resume", run], ["eval", run], ["export", run]):
            assert main([*map(str, words)]) == 2
            said = capsys.readouterr().err
            assert said.count("\n") == 1 and "config.yaml is damaged: " in said, (words, text)
    (run / "config.yaml").write_text(whole)
    (run / "summary.json").write_text("{")
    assert main(["report", str(run)]) == 2
    assert capsys.readouterr().err.startswith(f"flowward: {run}/summary.json is damaged: ")
