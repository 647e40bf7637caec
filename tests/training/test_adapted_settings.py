"""Settings that a run chooses for itself: their state is kept, saved and taken back with everything else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from local_studios import plain_attention, remote, same, weights
from tiny_runs import algorithm, equal, small, snapshot, trainer

from flowward.algorithms.auto_gamma import AutoGamma, Rule
from flowward.learning.points import Renoise
from flowward.learning.snapshots import Decay
from flowward.process.rollout import Sampler
from flowward.system import checkpoint
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.metrics import Tally
from flowward.training.trainer import Trainer

AUTO = algorithm(gamma="auto", auto=AutoGamma(nats=1e-9, budget=1e-9), old=Decay(0.9), points=Renoise(2))
CHOSEN = ("gamma", "gamma_factor", "ess", "line_search", "lam")


def auto(tiny: str, how: Any = AUTO, **changes: Any) -> Trainer:
    return trainer(tiny, how, **{"updates_per_iteration": 2, "iterations": 9, **changes})


def test_what_the_run_chose_is_written_and_its_sums_are_not(tiny: str) -> None:
    """Two updates: at the second the policy has left `old`, so there is a line search. `old` is the
    reference in the first iteration alone, so lam rises after the second."""
    one = auto(tiny)
    first, second, third = (one.step().metrics for _ in range(3))
    for line in (first, second, third):
        assert all(name in line for name in CHOSEN) and not any(name.startswith("_") for name in line)
    assert third["gamma"] == pytest.approx(one.adapted["forward"] * third["gamma_factor"], rel=1e-12)
    assert first["lam"] == second["lam"] == 1e-3 < third["lam"]  # of this iteration, not of the next
    fixed = trainer(tiny).step().metrics
    assert not {*CHOSEN} & {*fixed} and {"old_nats", "reference_nats"} <= {*fixed}


def test_the_rule_reads_the_last_optimiser_step(tiny: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two: in the first the policy is `old`, so the mean of the iteration is half of what the rule reads."""
    seen, learned = [], Rule.learned
    monkeypatch.setattr(Rule, "learned", lambda self, state, measured: (
        seen.append(measured()["old_nats"]) or learned(self, state, measured)  # type: ignore[func-returns-value]
    ))  # fmt: skip
    metrics = auto(tiny).step().metrics
    assert seen[0] > 0 and metrics["old_nats"] == pytest.approx(seen[0] / 2, rel=1e-6)


def test_lam_can_be_changed_where_no_budget_moves_it() -> None:
    """On resume: a checkpoint has the lambda of its settings."""
    asked: list[float] = []

    def spy(models: Any, points: Any, gamma: float, lam: float) -> Any:
        asked.append(lam)
        return None, {}

    before = {**Rule(AutoGamma(), 1e-3, spy).start(), "lam": 0.2}
    for auto, lam in ((AutoGamma(), 0.5), (AutoGamma(budget=1.0), 0.1), (AutoGamma(budget=1.0), 0.3)):
        Rule(auto, lam, spy).loss(before)(None, None)  # type: ignore[arg-type]
    assert asked == [0.5, 0.2, 0.3]


def test_a_budget_whose_kl_is_not_known_is_told_once(tiny: str) -> None:
    for guidance, known in ((2.0, False), (1.0, True)):
        auto = AutoGamma(budget=1.0)
        one = trainer(tiny, algorithm(gamma="auto", auto=auto, rollout=Sampler(2, guidance=guidance)), iterations=9)
        said = [[each for each in one.step().health if each.startswith("auto.budget has no effect")] for _ in range(3)]
        assert list(map(len, said)) == [0 if known else 1, 0, 0]


def test_the_loss_follows_what_was_chosen(tiny: str) -> None:
    """Another state, other weights: the loop trains with the gamma of its state."""
    found = []
    for factor in (1.0, 8.0):
        one = auto(tiny)
        one.step()
        one.adapted = {**one.adapted, "factor": factor}
        one.step()
        found.append(snapshot(one.policy))
    assert not equal(*found)


def test_steps_that_are_meant_to_be_long_are_no_fault(tiny: str) -> None:
    """Below a factor of 1 some points have no minimum on purpose: the health rule about that keeps quiet."""
    for factor in (1.0, 0.4):  # times 1.1 or more, where the lowest advantage is -1
        one = auto(tiny)
        one.step()
        one.adapted = {**one.adapted, "factor": factor}
        step = one.step()
        assert ("curvature_min" in step.metrics) == (factor == 1.0)
        assert not any("has no minimum" in each for each in step.health)


def test_two_halves_make_a_whole(tiny: str, tmp_path: Path) -> None:
    """To the bit, through a checkpoint."""
    whole = auto(tiny)
    lines = [whole.step().metrics for _ in range(4)]
    first, second = auto(tiny), auto(tiny)
    for _ in range(2):
        first.step()
    checkpoint.save(tmp_path / "2.safetensors", first.state_dict())
    second.load_state_dict(checkpoint.load(tmp_path / "2.safetensors"))
    assert second.adapted == first.adapted != whole.adaptive.start()
    assert [second.step().metrics for _ in range(2)] == lines[2:]
    assert equal(snapshot(second.policy), snapshot(whole.policy)) and second.adapted == whole.adapted


def test_a_checkpoint_without_such_a_state_can_be_used(tiny: str) -> None:
    """Of an older version, or of a run with a fixed gamma; which in turn has none to save."""
    fixed = auto(tiny, algorithm(old=Decay(0.9), points=Renoise(2)))
    fixed.step()
    assert "adapted" not in fixed.state_dict()
    one = auto(tiny)
    one.step()
    state = one.state_dict()
    one.load_state_dict(fixed.state_dict())
    assert one.adapted == one.adaptive.start()
    fixed.load_state_dict(state)
    fixed.step()
    assert "gamma" not in fixed.step().metrics


@pytest.mark.parametrize("stage", ["update", "learned"])
def test_an_iteration_that_fails_leaves_the_state_as_it_was(
    tiny: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = auto(tiny), auto(tiny)
    one.step()
    before, original = one.adapted, Trainer.update
    calls = []

    def update(self: Trainer, number: int) -> float | None:
        calls.append(number)
        if stage == "update" and len(calls) == 2:
            raise TrainingError("no")
        return original(self, number)

    def broken(self: Tally) -> dict[str, float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "update", update)
        if stage == "learned":
            patched.setattr(Tally, "of_last_step", broken)
        with pytest.raises((TrainingError, KeyboardInterrupt)):
            one.step()
    assert one.adapted == before
    one.step(), other.step(), other.step()
    assert one.adapted == other.adapted and equal(snapshot(one.policy), snapshot(other.policy))


def test_going_back_takes_the_state_of_the_checkpoint(tiny: str, tmp_path: Path) -> None:
    one = auto(tiny, rollback=1, output=tmp_path / "run", checkpoint_every=1)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = one.steps(folder=folder)
    next(steps)
    state, learn = dict(one.adapted), one.learn

    def broken(points: Any) -> dict[str, float]:
        one.learn = learn  # type: ignore[method-assign]
        one.adapted = {}
        raise TrainingError("no")

    one.learn = broken  # type: ignore[method-assign]
    after = next(steps)
    assert one.rollbacks == 1 and after.index == 2 and after.metrics["gamma_factor"] == state["factor"]
    steps.close()


@plain_attention()
def test_images_of_earlier_weights(tiny: str, tmp_path: Path) -> None:
    """Drawn elsewhere by the weights of an iteration before; stopped and resumed, to the bit."""
    run = small(rollout_batch=4, iterations=9)
    whole = remote(tiny, AUTO, run, 1)
    for stop in range(3):
        checkpoint.save(tmp_path / f"{stop}.safetensors", whole.state_dict())
        whole.step()
    part = remote(tiny, AUTO, run, 1, many=2)
    part.load_state_dict(checkpoint.load(tmp_path / "1.safetensors"))
    part.step(), part.step()
    assert same(weights(part), weights(whole)) and part.adapted == whole.adapted
    assert part.adapted["seen"] == 3
    whole.close(), part.close()


def test_under_guidance_there_are_no_nats(tiny: str) -> None:
    """Guided velocities are not E[u | x_t]: no KL is written, and the factor stays 1."""
    for how in ({"guidance": 2.0}, {"rollout": Sampler(2, guidance=2.0)}):
        one = auto(tiny, algorithm(gamma="auto", auto=AutoGamma(nats=1e-9), old=Decay(0.9), **how))
        found = [one.step().metrics for _ in range(2)][-1]
        assert "old_nats" not in found and found["gamma_factor"] == 1.0 and "line_search" in found
        assert one.adapted["factor"] == 1.0


def test_means_of_the_last_optimiser_step() -> None:
    tally = Tally()
    tally.begin_step()
    tally.add({"loss": torch.ones(2), "a": torch.tensor([1.0, 3.0])})
    assert tally.of_last_step() == {"a": 2.0}
    tally.begin_step()
    tally.add({"loss": torch.ones(1), "a": torch.tensor([9.0]), "b_min": torch.tensor([4.0])})
    tally.add({"loss": torch.ones(1), "a": torch.tensor([5.0])})
    assert tally.of_last_step() == {"a": 7.0}
    assert tally.means(4)["a"] == 4.5
