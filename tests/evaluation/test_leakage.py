"""Prompts that a run is trained on and measured on are counted and told, with what to change; others are not."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import TEXTS, algorithm, bright, small

import flowward
from flowward import prompts
from flowward.cli import main
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.evaluation.leakage import leak
from flowward.process.rollout import Sampler
from flowward.prompts import PromptSet

BUDGET = shlex.split(
    "--iterations 1 --images-per-update 8 --group-size 4 --microbatch 8 --algorithm.rollout.steps 2 --reward balance "
    "--evaluation.images 60 --evaluation.sampler.steps 1 --evaluation.rewards balance --threads 1"
)


def told(trained: str, measured: str) -> str | None:
    one, other = prompts.load(trained), prompts.load(measured)
    return leak(one, other, range(len(other)), (trained, measured))


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    """Two files of 400 prompts that share half of them."""
    for name, first in (("a", 0), ("b", 200)):
        (tmp_path / f"{name}.txt").write_text("\n".join(f"a cat number {k}" for k in range(first, first + 400)))
    return str(tmp_path / "a.txt"), str(tmp_path / "b.txt")


def test_the_shared_prompts_are_counted() -> None:
    one = PromptSet("one", ("a", "b", "c", "d"), ("x", "x", "y", "y"))
    other = PromptSet("other", ("c", "e", "a", "f"), ("all",) * 4)
    assert leak(one, other, range(4)).startswith("2 of the 4 prompts of the evaluation are also training prompts, ")
    assert leak(one, other, [0, 0, 0, 1]).startswith("1 of the 2 prompts of the evaluation is also a training prompt, ")
    assert leak(one, other, [2, 2]).startswith("the one prompt of the evaluation is also a training prompt, ")
    assert leak(one, other, [1, 3]) is None  # only what is measured counts
    assert leak(one.weighted(["y=0"]), other, [0, 1, 3]) is None  # and only what is drawn
    assert leak(one.weighted(["y=3"]), other, [0, 1, 3]) is not None
    assert "\n" not in leak(one, other, range(4)) and ": " not in leak(one, other, range(4))  # no advice on such sets


def test_the_advice_ends_the_leak(files: tuple[str, str]) -> None:
    """Whatever two parts of two files are named: with the change that is told nothing is shared any more."""
    cases = 0
    for one in files:
        for other in files:
            for trained in (one, f"train:{one}", f"held-out:{one}"):
                for measured in (other, f"held-out:{other}", f"train:{other}"):
                    if said := told(trained, measured):
                        todo = dict(what.split(" on ") for what in said.partition(": ")[2].split(" and "))
                        assert todo and told(todo.get("train", trained), todo.get("evaluate", measured)) is None
                        cases += 1
    assert cases == 28  # of 36: a train part shares nothing with a held-out one


@pytest.mark.parametrize(
    ("trained", "measured", "advice"),
    [
        ("scenes", "scenes", "evaluate on scenes-held-out"),
        ("scenes-held-out", "scenes-held-out", "train on scenes"),
        ("scenes-held-out", "scenes", None),
        ("scenes", "scenes-held-out", None),
        ("drawbench-style", "drawbench-style", ""),
    ],
)
def test_built_in_sets_have_a_part_beside_them(trained: str, measured: str, advice: str | None) -> None:
    said = told(trained, measured)
    assert (said and said.partition(": ")[2]) == advice
    one, other = prompts.load(trained), prompts.load(measured)
    assert leak(one, other, range(len(other))) == said  # the names of built-in sets need not be told


@pytest.mark.processor
def test_a_run_says_so_before_it_starts_and_in_its_report(
    tiny: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, how = tmp_path / "mine.txt", [*BUDGET, "--model", tiny]
    file.write_text("\n".join(prompts.load("scenes").texts[:60]))
    said = {}
    for name, trained in (("leaky", str(file)), ("clean", f"train:{file}")):
        where = ["--prompts", trained, "--evaluation.prompts", f"held-out:{file}", "--output", str(tmp_path / name)]
        assert main(["train", *how, *where]) == 0
        said[name] = capsys.readouterr().out
    first = json.loads((tmp_path / "leaky" / "metrics.jsonl").read_text().splitlines()[0])
    (warning,) = first["health"]
    assert first["iteration"] == 0 and warning.endswith(f": train on train:{file}")
    assert said["leaky"].index(f"warning: {warning}") < said["leaky"].index("iteration 0:")
    assert warning.partition(":")[0] in (tmp_path / "leaky" / "report.html").read_text("utf-8")
    assert "also training prompts" not in said["clean"] + (tmp_path / "clean" / "report.html").read_text("utf-8")
    assert main(["export", str(tmp_path / "leaky")]) == 0
    assert "also training prompts" in (tmp_path / "leaky" / "export" / "README.md").read_text("utf-8")


def test_so_does_one_from_python(tiny: str) -> None:
    policy, texts = flowward.load(tiny, precision="float32"), prompts.of("mine", TEXTS)
    how = Evaluation(rewards=("balance",), images=3, sampler=Sampler(1))
    run = small(iterations=0)
    for measured, lines in ((texts, 1), (prompts.of("other", ["a blue ring", "a blue square"]), 0)):
        evaluator = Evaluator(policy, how, measured, 3, {"balance": bright})
        (step,) = flowward.train(algorithm(), policy, bright, texts, run, evaluator)
        assert step.index == 0 and len(step.health) == lines
    evaluator = Evaluator(policy, replace(how, sampler=Sampler(1, guidance=3.0)), measured, 3, {"balance": bright})
    (step,) = flowward.train(algorithm(), policy, bright, texts, run, evaluator)
    assert step.health == ["training uses guidance 1, but the evaluation uses 3"]
