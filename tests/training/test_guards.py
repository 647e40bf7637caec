"""Guards are watched over a run, from its first evaluation on, and never optimised."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_runs import bright, trainer
from torch import Tensor

from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.evaluation.measurement import Measurement
from flowward.training.folder import RunFolder
from flowward.training.guards import FIRST, Watch

TEXTS = tuple(f"prompt {number}" for number in range(40))


def measured(objective: Tensor, watched: Tensor, **settings: object) -> Measurement:
    told = {"guard": ["guard"], "seed": 0, "rewards": {}, "model": {"name": "m"}, "versions": {}, **settings}
    return Measurement("m", told, TEXTS, ("all",) * 40, {"objective": objective, "guard": watched}, frozenset())


def noisy(mean: float, seed: int) -> Tensor:
    return mean + 0.1 * torch.randn(40, generator=torch.Generator().manual_seed(seed))


def test_a_guard_that_falls_while_the_headline_rises_is_told() -> None:
    """And only then: a headline that stays, a guard that rises with it, or both that fall, say nothing."""
    start = measured(noisy(0.3, 0), noisy(0.6, 1))
    for rise, fall, said in ((0.2, -0.2, 1), (0.0, -0.2, 0), (0.2, 0.2, 0), (-0.2, -0.2, 0)):
        watch = Watch()
        assert watch.look(0, start) == []
        lines = watch.look(10, measured(noisy(0.3 + rise, 2), noisy(0.6 + fall, 3)))
        assert len(lines) == said
        if said:
            assert lines[0].startswith("iteration 10 against before training: objective rose by 0.")
            assert "guard fell by 0." in lines[0] and "reward hacking" in lines[0]


def test_a_run_that_goes_on_compares_with_its_beginning(tmp_path: Path) -> None:
    start, later = measured(noisy(0.3, 0), noisy(0.6, 1)), measured(noisy(0.6, 2), noisy(0.3, 3))
    assert Watch(tmp_path).look(0, start) == []
    assert (tmp_path / FIRST).is_file()
    assert len(Watch(tmp_path).look(10, later)) == 1
    other = measured(noisy(0.6, 2), noisy(0.3, 3), seed=5)  # nothing to compare with: begin anew
    assert Watch(tmp_path).look(20, other) == []
    assert Watch(tmp_path).look(30, measured(noisy(0.9, 2), noisy(0.0, 3), seed=5))


def test_without_guards_nothing_is_kept(tmp_path: Path) -> None:
    assert Watch(tmp_path).look(0, measured(noisy(0, 0), noisy(0, 1), guard=[])) == []
    assert not (tmp_path / FIRST).exists()


def test_the_trainer_watches(tiny: str, tmp_path: Path) -> None:
    """What it says stands among the health lines of the iteration; each evaluation draws its images once."""
    one = trainer(tiny, iterations=1)
    how = Evaluation(prompts="scenes-held-out", rewards=("scenes-soft",), guard=("balance",), images=6)
    evaluator = Evaluator(one.policy, how, one.prompts, rewards={"scenes-soft": bright, "balance": bright})
    folder = RunFolder.create(tmp_path / "run", {})
    for _ in one.steps(evaluator, folder):
        one.watch.look = lambda iteration, now: [f"seen at {iteration}: {', '.join(now.scores)}"]  # type: ignore
    lines = folder.lines()
    assert lines[1]["health"][-1] == "seen at 1: scenes-soft, balance"
    assert (tmp_path / "run" / FIRST).is_file()
    assert lines[1]["evaluation"]["scores"].keys() == {"scenes-soft", "balance"}
