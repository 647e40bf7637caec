"""`train --dry-run` counts what a run computes, and leaves nothing behind."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest
import yaml
from program import BUDGET, Refused
from tiny_runs import equal, few_steps, snapshot, trainer

from flowward import prompts
from flowward.cli import main
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.process.rollout import Sampler
from flowward.rewards.images.scenes import Balance
from flowward.training import config, counting, rehearsal
from flowward.training.assembly import Assembly
from flowward.training.bench import Recorder

HOW = shlex.join(
    [*BUDGET, "--reward", "balance", "--iterations", "5", "--evaluate-every", "2", "--precision", "float32"]
)


@pytest.mark.parametrize("name", ["advantageflow", "awm", "flow_grpo", "mix_grpo", "tempflow_grpo", "fdfo"])
def test_network_evaluations_are_those_of_an_iteration(name: str, tiny: str) -> None:
    how = few_steps(name)
    size = 2 if name == "fdfo" else max(4, how.rollout.leaves)  # it compares pairs
    one = trainer(tiny, how, reward=Balance(), group_size=size, images_per_update=2 * size, microbatch=64)
    measured = Evaluation(images=6, rewards=("balance",), sampler=Sampler(2))
    evaluator = Evaluator(one.policy, measured, prompts.load("scenes-held-out"))
    settings = config.Settings(run=one.run, evaluation=measured, algorithm=how)
    made = Assembly(settings, one, evaluator, (), (), {})
    before, counts = snapshot(one.policy), counting.counts(made)
    found = rehearsal.rehearsed(made)
    assert equal(before, snapshot(one.policy)) and one.iteration == 0
    one.step()  # copies are equal to the policy at first
    recorder = Recorder(one.policy)
    one.step()
    asked: Counter[str] = Counter()
    for call in recorder.calls:
        asked[call.what] += call.batch
    recorder.restore()
    assert counts.training == asked["forward+backward"]
    assert counts.sampling <= asked["forward"] <= counts.sampling + counts.frozen
    assert counts.evaluation == 6 * 2 and found.evaluations == 2
    assert found.evaluation > 0 and all(each > 0 for each in found.parts.values())


def test_dry_run_reports_and_makes_no_folder(
    tiny: str, elsewhere: None, capsys: pytest.CaptureFixture[str], refused: Refused
) -> None:
    words = ["train", "--model", tiny, *shlex.split(HOW), "--output", "new"]
    assert main([*words, "--dry-run"]) == 0
    said = capsys.readouterr().out
    for part in (
        "reward               balance: works",
        "images               8 per iteration (2 prompts x 4)",
        "training points      16 per iteration",
        "network evaluations  64 per iteration: 16 to sample, 16 to train, at most 32 of frozen copies",
        "evaluations          4 in all, each 6 images and 6 network evaluations",
        "in all               5 iterations, 40 images, 344 network evaluations",
        "memory ",
        "time ",
    ):
        assert part in said, part
    assert not list(Path().iterdir())
    assert "leave out --processes" in refused(*words, "--dry-run", "--processes", "2")
    assert "cannot be split" in refused(*words, "--dry-run", "--group-size", "3")


def test_printed_config_starts_the_same_run(tiny: str, elsewhere: None, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--model", tiny, *shlex.split(HOW)]
    assert main([*words, "--algorithm", "awm", "--print-config"]) == 0
    text = capsys.readouterr().out
    given = yaml.safe_load(text)
    assert given["algorithm"]["name"] == "awm" and given["run"]["iterations"] == 5 and given["run"]["output"] is None
    assert not list(Path().iterdir())
    Path("again.yaml").write_text(text)
    assert main(["train", "--config", "again.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == text
