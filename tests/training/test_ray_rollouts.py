"""Ray actors draw and score: the bits of a plain run, whatever dies meanwhile. Needs flowward[ray]."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import BUDGET, assert_same, metrics, state, train
from tiny_runs import TEXTS, algorithm, bright, small, snapshot

from flowward import models, prompts, rewards
from flowward.pages import report
from flowward.rewards import RewardError
from flowward.system.distributed import Deserted
from flowward.training.rollouts.ray import Actors, Model, RayReward
from flowward.training.rollouts.remote import RemoteTrainer

ray = pytest.importorskip("ray")
SIZES = ("--rollout-batch", "4", "--iterations", "3", "--evaluate-every", "0", "--precision", "float32")


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    """One for all tests of this file; they bring their own actors, and take them away."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the run."""
    monkeypatch.setattr(report, "write", lambda folder: folder / "report.html")


@pytest.fixture(scope="module")
def plain(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without Ray."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    train(*BUDGET, *SIZES, "--model", tiny, "--output", folder)
    return folder


@pytest.fixture(scope="module")
def stale(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose images come from the weights of one iteration before."""
    folder = tmp_path_factory.mktemp("runs") / "stale"
    train(*BUDGET, *SIZES, "--model", tiny, "--output", folder, "--rollouts", "ray", "--stale", "1")
    return folder


def assert_equal_runs(a: Path, b: Path) -> None:
    assert_same(state(a), state(b))
    assert metrics(a) == metrics(b)


@pytest.mark.parametrize("drawers", ["1", "2"])
def test_drawers_do_what_the_plain_run_does(tiny: str, plain: Path, tmp_path: Path, drawers: str) -> None:
    folder = tmp_path / "run"
    train(*BUDGET, *SIZES, "--model", tiny, "--output", folder, "--rollouts", "ray", "--drawers", drawers)
    assert_equal_runs(plain, folder)


def test_reward_actors_score_as_the_trainer_does(tiny: str, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    how = ("--rollouts", "ray", "--drawers", "2", "--reward-actors", "2")
    train(*BUDGET, *SIZES, "--model", tiny, "--output", folder, *how)
    assert_equal_runs(plain, folder)


def test_a_stale_run_is_a_function_of_its_seed_and_of_k(tiny: str, plain: Path, stale: Path, tmp_path: Path) -> None:
    """Once more with two drawers, stopped on the way and resumed with one."""
    folder = tmp_path / "run"
    how = ("--rollouts", "ray", "--stale", "1", "--drawers", "2")
    train(*BUDGET, *SIZES, "--model", tiny, "--output", folder, *how, "--iterations", "2")
    assert list(state(folder)["versions"]) == [1]
    train("--resume", folder, "--drawers", "1", "--iterations", "3")
    assert_same(state(stale), state(folder))
    assert any(
        not torch.equal(tensor, state(plain)["weights"]["policy"][key])
        for key, tensor in state(stale)["weights"]["policy"].items()
    )


def made(tiny: str, stale: int = 1, rank: int | None = None, **given: Any) -> tuple[RemoteTrainer, Actors]:
    """A trainer of which one may ask the actors."""
    run = small(rollout_batch=4, iterations=9)
    policy = models.load(tiny, rank, "float32")
    how, adapters = algorithm(), models.Adapters(rank) if rank else None
    actors = Actors(Model.of(policy, adapters, how.rollout, run), policy, 1, **given)
    texts = prompts.of("mine", TEXTS)
    return RemoteTrainer(how, policy, bright, texts, run, actors.studio, stale, scorers=actors.rewards), actors


def pid(one: RemoteTrainer) -> int:
    assert one._dealer is not None
    found: int = ray.get(one._dealer._studio.drawers[0]._actor.pid.remote())  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("rank", [None, 2])
def test_a_killed_drawer_changes_nothing_and_a_second_death_ends_the_run(tiny: str, rank: int | None) -> None:
    (whole, _), (hurt, _) = made(tiny, rank=rank), made(tiny, rank=rank)
    for number in range(3):
        whole.step()
        hurt.step()
        if number == 0:
            first = pid(hurt)
            os.kill(first, signal.SIGKILL)
    assert pid(hurt) != first
    ours, theirs = (snapshot(one.policy) for one in (whole, hurt))
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in ours.items())
    whole.close()
    os.kill(pid(hurt), signal.SIGKILL)
    with pytest.raises(Deserted, match=r"^a drawer has died, was started again, and has died again: .* --resume$"):
        for _ in range(3):
            hurt.step()
    before = {key: tensor.clone() for key, tensor in theirs.items()}
    hurt.close()
    assert hurt.iteration in (3, 4) and before.keys() == theirs.keys()


def test_an_error_of_a_drawer_is_told_as_if_it_were_here(tiny: str, tmp_path: Path) -> None:
    one, actors = made(tiny)
    object.__setattr__(actors.model, "name", str(tmp_path / "none"))
    with pytest.raises(ValueError, match="none"):
        one.step()
    one.close()
    object.__setattr__(actors.model, "name", "scenes")
    with pytest.raises(ValueError, match=r"^a drawer loads another model than the trainer \(different base, "):
        one.step()
    one.close()


def test_a_reward_that_fails_in_an_actor_fails_here(tiny: str, tmp_path: Path) -> None:
    code = tmp_path / "mine.py"
    code.write_text("missing = 0\n\n\ndef bad(images, prompts):\n    raise ZeroDivisionError('by design')\n")
    reward = rewards.load(f"{code}:bad")
    one, actors = made(tiny, 0, scorers=1, reward=reward, names=(f"{code}:bad",))
    one.reward = reward
    with pytest.raises(RewardError, match=r"reward '.*bad' raised ZeroDivisionError: by design"):
        one.step()
    found = actors.rewards()
    assert all(isinstance(each, RayReward) and each.in_background for each in found.values())
    one.close()
