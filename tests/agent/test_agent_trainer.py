"""The loop over questions: what may not matter does not, and a run goes on as if it had not stopped."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_agents import evaluator, trainer

from flowward.agent.algorithm import AgentFlow
from flowward.agent.episode import Ask, Said
from flowward.agent.rollout import InProcess, OnServer
from flowward.agent.trainer import AgentTrainer, EpisodesLost
from flowward.system.asking import ServiceError
from flowward.system.streams import Key
from flowward.training.folder import RunFolder
from flowward.training.metrics import Clock


def weights(own: AgentTrainer) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in own.model.weights.tensors("policy").items()}


def furthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max((one[name] - other[name]).abs().max().item() for name in one)


def test_a_resumed_run_is_bitwise_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = trainer()
    lines = [step.line(0, "episodes") for step in whole.steps()]
    first = trainer()
    for _ in range(2):
        first.step()
    RunFolder.create(tmp_path / "run", {}).save(2, first.state_dict())
    second = trainer()
    state = RunFolder(tmp_path / "run").state()
    assert state is not None
    second.load_state_dict(state)
    again = [step.line(0, "episodes") for step in second.steps()]
    assert furthest(weights(whole), weights(second)) == 0
    for line in [*lines, *again]:
        line.pop("seconds"), line.pop("speed")
    assert again == lines[2:]


@pytest.mark.parametrize("other", [{"microbatch": 3}, {"rollout_batch": 5}])
def test_batches_change_nothing_beyond_rounding(other: dict[str, int]) -> None:
    one, two = trainer(), trainer(**other)
    for own in (one, two):
        for _ in own.steps():
            pass
    assert furthest(weights(one), weights(two)) < 1e-3 < 1e-2 < furthest(weights(one), weights(trainer()))


@pytest.mark.parametrize("how", ["paper", "episode", "token"])
@pytest.mark.parametrize("statistics", ["trajectory", "turn"])
def test_every_form_learns(how: Any, statistics: Any) -> None:
    own = trainer(AgentFlow(weights=how, statistics=statistics), iterations=25)
    rewards = [step.metrics["reward"] for step in own.steps()]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2


def test_the_ratio_is_1_before_the_first_update() -> None:
    own = trainer(updates_per_iteration=1, iterations=1, questions_per_update=8)
    (step,) = own.steps()
    assert step.metrics["log_ratio"] == 0
    assert step.metrics["first_ratio_max"] < 1e-5
    assert step.metrics["clipped_up"] == step.metrics["clipped_down"] == 0


def test_equal_rewards_leave_the_weights_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    own = trainer(AgentFlow(beta=0.0), iterations=1)
    monkeypatch.setattr(type(own.terms[0]), "score", lambda *_: torch.ones(16, dtype=torch.float64))
    before = weights(own)
    (step,) = own.steps()
    assert furthest(before, weights(own)) == 0
    assert step.metrics["zero_variance"] == 1 and step.metrics["loss"] == 0


def broken(model: Any, lost: Sequence[int]) -> Any:
    """Loses the episodes with these places in the batch in their first turn."""
    plain = InProcess(model, 1.0, 3)

    def sampler(weights: str, asks: Sequence[Ask], keys: Sequence[Key] | None) -> list[Said | ServiceError]:
        said: list[Said | ServiceError] = list(plain(weights, asks, keys))
        if len(asks) == 16:
            for place in lost:
                said[place] = ServiceError("the server is gone")
        return said

    sampler.elsewhere = False  # type: ignore[attr-defined]
    return sampler


def with_sampler(own: AgentTrainer, sampler: Any) -> AgentTrainer:
    own.player = type(own.player)(own.player.system, sampler, own.player.tools, {}, 64)
    return own


def test_a_lost_episode_is_left_out_of_its_group_and_counted() -> None:
    own = trainer(iterations=1)
    (step,) = with_sampler(own, broken(own.language, [0, 5])).steps()
    assert step.metrics["end/failed"] == 2 / 16
    assert any("12% of the episodes were lost" in line for line in step.health)
    whole = trainer(iterations=1)
    (other,) = whole.steps()
    assert step.metrics["reward"] != other.metrics["reward"]  # a mean over 14 episodes


def test_a_run_without_any_episode_stops_and_keeps_its_weights() -> None:
    own = trainer(iterations=1)
    before = weights(own)
    with pytest.raises(EpisodesLost, match="no episode of this iteration could be finished: the server is gone"):
        list(with_sampler(own, broken(own.language, range(16))).steps())
    assert furthest(before, weights(own)) == 0


class Server:
    """A planner server with the weights that it was given, whose log-probabilities are off by `shift`."""

    def __init__(self, model: Any, shift: float):
        self.model, self.shift, self.used = model, shift, list[str]()

    def use(self, folder: Path, name: str) -> None:
        assert (folder / "adapter_model.safetensors").is_file()
        self.used.append(name)

    def draw(self, asks: Sequence[Ask], seeds: Sequence[int], temperature: float | None) -> list[Said]:
        uniforms = [torch.rand(3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        said = self.model.sample("policy", [ask.ids for ask in asks], uniforms, 1.0, 3)
        return [replace(each, log_probs=tuple(value - self.shift for value in each.log_probs)) for each in said]


def served(shift: float, path: Path, **run: Any) -> tuple[AgentTrainer, Server]:
    own = trainer(adapters=4, **run)
    server = Server(own.language, shift)
    return with_sampler(own, OnServer(own.language, server, path)), server  # type: ignore[arg-type]


def test_the_log_probabilities_of_a_server_are_recomputed_and_their_gap_is_told(tmp_path: Path) -> None:
    own, server = served(0.1, tmp_path, iterations=2, questions_per_update=8, updates_per_iteration=1)
    first, _ = own.steps()
    assert first.metrics["server_gap_mean"] == pytest.approx(0.1, abs=1e-4)
    assert first.metrics["server_gap_ratio"] == pytest.approx(torch.tensor(0.1).exp().item(), abs=1e-3)
    assert first.metrics["first_ratio_max"] < 1e-5  # the ratio of training is of recomputed ones
    assert any("the server's log-probabilities differ" in line for line in first.health)
    assert server.used == ["flowward-1", "flowward-2"]  # a name of its own after each update


def test_a_truncated_weight_multiplies_the_loss(tmp_path: Path) -> None:
    def gradient(shift: float, correct: float | None, cap: str) -> torch.Tensor:
        own, _ = served(shift, tmp_path / cap, iterations=1, questions_per_update=8, updates_per_iteration=1)
        own.correct, own.algorithm = correct, AgentFlow(beta=0.0)
        gathered = own.gather(0, Clock())
        assert gathered.points is not None
        (part,) = own.batches(gathered.points, torch.arange(len(gathered.points)), fresh=True)
        own.algorithm.loss(own.models, part)[0].sum().backward()
        return torch.cat([each.grad.flatten() for each in own.parameters if each.grad is not None])

    plain = gradient(0.1, None, "plain")
    assert (gradient(0.1, 2.0, "all") / math.exp(0.1) - plain).norm() < 1e-4 * plain.norm()
    assert (gradient(0.1, 1.0, "cut") - plain).norm() < 1e-4 * plain.norm()


def test_only_chosen_turns_are_trained() -> None:
    for chosen, expected in (("first", {1}), ("last", {1}), ("all", {1, 2, 3})):
        own = trainer(AgentFlow(turns=chosen), iterations=1)  # type: ignore[arg-type]
        gathered = own.gather(0, Clock())
        assert gathered.points is not None
        assert {len(unit) for unit in gathered.points.units()} <= expected


def test_an_evaluation_measures_sampled_and_greedy_episodes_and_keeps_some(tmp_path: Path) -> None:
    own = trainer(output=tmp_path / "run", evaluate_every=2)
    folder = RunFolder.create(tmp_path / "run", {})
    steps = list(own.steps(evaluator(own), folder))
    evaluated = [step for step in steps if step.evaluation]
    assert [step.index for step in evaluated] == [0, 2, 4]
    found = evaluated[-1].evaluation
    assert found is not None
    assert list(found["scores"]) == ["exact", "exact (greedy)"]
    assert found["samples"] == "episodes" and found["scores"]["exact"]["overall"]["n"] == 8
    assert sum(found["behaviour"]["sampled"]["ends"].values()) == pytest.approx(1)
    from flowward.agent import episodes

    kept = episodes.read(folder)
    assert {line["iteration"] for line in kept} == {0, 2, 4}
    assert kept[0]["turns"] and kept[0]["expected"] == ["b"]
    assert folder.lines()[-1]["episodes"] == 4 * 16


def test_a_curriculum_rests_questions_whose_episodes_are_all_equal() -> None:
    own = trainer(AgentFlow(beta=0.0), iterations=12, curriculum=2, learning_rate=1e-9)
    steps = list(own.steps())
    assert any(step.metrics["resting"] > 0 for step in steps)
