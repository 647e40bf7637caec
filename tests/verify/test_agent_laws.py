"""`flowward verify agentflow`: the laws hold, and each kind of mistake breaks the laws that name it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowward.agent import algorithm as module
from flowward.agent.algorithm import AgentFlow
from flowward.agent.points import Decisions, Turns
from flowward.cli import main
from flowward.learning import credit
from flowward.verify import Check, agents, expectations, verify
from flowward.verify.check import guarded
from flowward.verify.turns import World

Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def laws() -> list[Check]:
    return list(agents.laws())


def test_every_law_holds(laws: list[Check]) -> None:
    assert [(each.law, each.error, each.remark) for each in laws if not each.holds] == []
    assert len({each.law for each in laws}) == len(laws)
    assert sum(each.part == "protocol" for each in laws) == 15
    assert max(each.error for each in laws if "differences" not in each.law) < 1e-12


def test_the_world_is_whole() -> None:
    world = World()
    p = [world.probability(way, world.logits).item() for way in world.ways]
    assert sum(p) == pytest.approx(1, abs=1e-15)
    assert min(p) > 0.004
    assert World.even().success == pytest.approx(World.even().right, abs=1e-15)
    for size in (2, 3):
        assert world.groups(size).probability.sum().item() == pytest.approx(1, abs=1e-14)


@pytest.mark.parametrize(
    ("size", "expected"), [(2, math.sqrt(1 / 2)), (3, 2 / math.sqrt(3))]
)  # with 2 or 3 episodes all groups that teach have the same standard deviation
def test_the_factor_of_small_groups_does_not_depend_on_the_success_rate(size: int, expected: float) -> None:
    for success in (0.1, 0.5, 0.8):
        assert expectations.factor(size, success, True, 1e-12) == pytest.approx(expected)
        assert expectations.factor(size, success, False) == 1 - 1 / size
    assert expectations.factor(8, 0.5, True) < expectations.factor(8, 0.1, True)


def test_figures_of_the_bias_by_length(laws: list[Check]) -> None:
    """A success in one turn counts 18 to 26 % more than one in two turns if statistics count turns."""
    found = {each.law: each.measured for each in laws}
    one = "mean advantage of a success in 1 turn / in 2 turns, {} divisor, statistics by {}"
    push = "mean advantage of 1 turn minus 2 turns, which succeed equally often, {} divisor, statistics by {}"
    for divisor in ("with", "without"):
        assert found[one.format(divisor, "trajectory")] == pytest.approx(1)
        assert found[push.format(divisor, "trajectory")] == pytest.approx(0, abs=1e-12)
    assert found[one.format("without", "turn")] == pytest.approx(1.1787, abs=1e-4)
    assert found[one.format("with", "turn")] == pytest.approx(1.2645, abs=1e-4)
    assert found[push.format("with", "turn")] == pytest.approx(0.0304, abs=1e-4)


# Mistakes


def changed(**methods: Callable[..., Any]) -> type:
    """AgentFlow with other methods."""
    return type("Wrong", (AgentFlow,), methods)


def by_turn(self: AgentFlow, *given: Any) -> Tensor:
    return AgentFlow(credit=self.credit, statistics="turn").advantages(*given)


def by_trajectory(self: AgentFlow, *given: Any) -> Tensor:
    return AgentFlow(credit=self.credit).advantages(*given)


def with_failures(self: AgentFlow, trace: Any, rewards: Tensor, group: Tensor, kept: Tensor) -> Tensor:
    return AgentFlow.advantages(self, trace, rewards, group, torch.ones_like(kept))


def in_another_order(self: AgentFlow, *given: Any) -> Tensor:
    return AgentFlow.advantages(self, *given).flip(0)


def negative(self: AgentFlow, models: Any, points: Decisions) -> Any:
    loss, watched = AgentFlow.loss(self, models, points)
    return -loss, watched


def never_fresh(self: AgentFlow, models: Any, points: Decisions) -> Any:
    return AgentFlow.loss(self, models, replace(points, fresh=False))


def mean_of_tokens(self: AgentFlow, models: Any, points: Decisions) -> Any:
    loss, watched = AgentFlow.loss(self, models, points)
    return loss.mean(), watched


def depends_on_the_batch(self: AgentFlow, models: Any, points: Decisions) -> Any:
    a = points.advantage
    return AgentFlow.loss(self, models, replace(points, advantage=a - a.mean()))


def with_gradient(self: AgentFlow, models: Any, points: Decisions) -> Any:
    loss, watched = AgentFlow.loss(self, models, points)
    return loss, watched | {"loss": loss}


def patched(owner: Any, name: str, new: Any) -> Callable[[Patch], type]:
    def plant(patch: Patch) -> type:
        patch.setattr(owner, name, new)
        return AgentFlow

    return plant


def spoilt(**methods: Callable[..., Any]) -> Callable[[Patch], type]:
    return lambda _: changed(**methods)


RIGHT_WEIGHTS, RIGHT_STD, RIGHT_TAKE = Turns.token_weights, credit.group_std, Turns.take


def tokens_only(self: Turns) -> Tensor:
    """Without 1 / T."""
    return 1 / self.trace.answers.double() if self.weighting == "paper" else RIGHT_WEIGHTS(self)


def turns_only(self: Turns) -> Tensor:
    """Without 1 / |a|."""
    return RIGHT_WEIGHTS(self) * (self.trace.answers if self.weighting == "paper" else 1)


def padded(self: Turns, numbers: Tensor) -> Decisions:
    """Padding counts."""
    points = RIGHT_TAKE(self, numbers)
    return replace(points, weight=self.token_weights()[numbers][:, None].expand(points.weight.shape))


def bare_surrogate(log_prob: Tensor, old: Tensor, advantage: Tensor, *_: Any) -> Tensor:
    """Without clip."""
    return -advantage[:, None] * (log_prob - old.detach()).exp()


def trained_old(log_prob: Tensor, old: Tensor, advantage: Tensor, *_: Any) -> Tensor:
    return -advantage[:, None] * (log_prob - old).exp()


def swapped(log_prob: Tensor, old: Tensor, advantage: Tensor, low: float, high: float, dual: Any) -> Tensor:
    return RIGHT_SURROGATE(log_prob, old, advantage, high, low, dual)


def one_sided(log_prob: Tensor, old: Tensor, advantage: Tensor, low: float, high: float, dual: Any) -> Tensor:
    """The dual clip of positive advantages too."""
    loss = RIGHT_SURROGATE(log_prob, old, advantage, low, high)
    return loss if dual is None else loss.clamp_max(1.0)


RIGHT_SURROGATE = module.surrogate

MISTAKES: dict[str, tuple[Callable[[Patch], type], Callable[[Any], Iterator[Check]], str]] = {
    "sign": (spoilt(loss=negative), agents.first_turns, "expected gradient"),
    "statistics by turn": (spoilt(advantages=by_turn), agents.example, "by trajectory: A = 0.866"),
    "statistics by turn, gradient": (spoilt(advantages=by_turn), agents.gradients, "without divisor"),
    "statistics by turn, lengths": (
        spoilt(advantages=by_turn),
        agents.lengths,
        "without divisor, statistics by trajectory",
    ),
    "statistics by trajectory": (spoilt(advantages=by_trajectory), agents.example, "by turn: A = 0.645"),
    "advantage of another episode": (spoilt(advantages=in_another_order), agents.gradients, "without divisor"),
    "failed episodes": (
        spoilt(advantages=with_failures),
        agents.failures,
        "a group with a failed episode, statistics by trajectory",
    ),
    "ddof 0": (
        patched(credit, "group_std", lambda values, group, ddof: RIGHT_STD(values, group)),
        agents.example,
        "A = 0.866",
    ),
    "ddof 0, gradient": (
        patched(credit, "group_std", lambda values, group, ddof: RIGHT_STD(values, group)),
        agents.gradients,
        "3 episodes, with divisor",
    ),
    "no 1/T": (
        patched(Turns, "token_weights", tokens_only),
        agents.totals,
        "paper weights: sum over the tokens of an episode",
    ),
    "no 1/T, gradient": (patched(Turns, "token_weights", tokens_only), agents.gradients, "paper weights: c sum_t"),
    "no 1/|a|": (
        patched(Turns, "token_weights", turns_only),
        agents.totals,
        "paper weights: sum over the tokens of a turn",
    ),
    "divided by turns": (
        patched(Turns, "total", lambda self, numbers: float(len(numbers))),
        agents.totals,
        "paper weights: the divisor is the sum of all weights",
    ),
    "turns apart": (
        patched(Turns, "units", lambda self: list(torch.arange(len(self)).split(1))),
        agents.batches,
        "without the rest of their episode",
    ),
    "padding counts": (
        patched(Turns, "take", padded),
        agents.only_the_planner,
        "tokens with a weight are not the planner's own",
    ),
    "mean over the batch": (spoilt(loss=mean_of_tokens), agents.shapes, "one loss per turn"),
    "batch": (spoilt(loss=depends_on_the_batch), agents.batches, "loss of a turn, alone"),
    "metric with gradient": (spoilt(loss=with_gradient), agents.shapes, "without gradient, after"),
    "no clip": (patched(module, "surrogate", bare_surrogate), agents.clips, "0 beyond the clip"),
    "clip swapped": (patched(module, "surrogate", swapped), agents.clips, "0 beyond the clip"),
    "old is trained": (
        patched(module, "surrogate", trained_old),
        agents.only_the_planner,
        "gradient on recorded, old and reference",
    ),
    "no dual clip": (
        patched(module, "surrogate", lambda *given: RIGHT_SURROGATE(*given[:5])),
        agents.dual_clip,
        "beyond dual |A|",
    ),
    "dual clip of all": (
        patched(agents, "surrogate", one_sided),
        agents.dual_clip,
        "loss at ratios from 0.1 to 50, dual clip 3",
    ),
    "first ratio": (spoilt(loss=never_fresh), agents.first_update, "before the first update: loss -A sum w"),
    "k1": (patched(agents, "k3", lambda log_p, ref: log_p - ref), agents.divergence, "smallest k3"),
    "k3 the wrong way": (
        patched(agents, "k3", lambda log_p, ref: (log_p - ref).expm1() - (log_p - ref)),
        agents.divergence,
        "KL(pi, reference)",
    ),
    "KL of another sign": (
        patched(module, "k3", lambda log_p, ref: -agents.k3(log_p, ref)),
        agents.divergence,
        "expected KL term",
    ),
    "reference is trained": (
        patched(module, "k3", lambda log_p, ref: (ref - log_p).expm1() - (ref - log_p)),
        agents.only_the_planner,
        "gradient on recorded, old and reference",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_breaks_the_law_that_names_it(monkeypatch: Patch, mistake: str) -> None:
    plant, law_of, words = MISTAKES[mistake]
    assert any(words in each.law for each in law_of(AgentFlow))
    wrong = [each for each in guarded(law_of(plant(monkeypatch)), words, "") if not each.holds]
    assert [each.law for each in wrong if words in each.law]
    assert all(each.remark for each in wrong)


def test_a_wrong_sign_is_reported_as_such() -> None:
    wrong = [*agents.gradients(changed(loss=negative))]
    assert {each.remark for each in wrong} == {"wrong sign, -1 times"}


def test_a_class_that_fails_is_a_broken_law() -> None:
    def fails(*_: Any) -> Any:
        raise KeyError("mine")

    wrong = [each for each in agents.laws(changed(loss=fails)) if not each.holds]
    assert {each.remark for each in wrong} == {"KeyError: 'mine'"}
    assert len(wrong) >= 6


# The command


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "agentflow", "awm", "--output", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "\nagentflow  65 laws, all hold" in out
    assert "\n15 laws of the protocol" in out
    data = json.loads((tmp_path / "verify.json").read_text())
    assert {each["algorithm"] for each in data["checks"]} == {"agentflow", "awm"}
    assert "<h2>agentflow</h2>" in (tmp_path / "verify.html").read_text()


def test_help_names_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    out = capsys.readouterr().out
    assert "flowward verify agentflow" in out
    assert "or agentflow (default: all)" in out


def test_it_is_a_part_of_the_whole(laws: list[Check]) -> None:
    found = verify(["agentflow"])
    assert found.checks == [replace(each, algorithm="agentflow") for each in laws]
    assert not found.distances
    with pytest.raises(ValueError, match="unknown algorithm 'agentflo'; did you mean 'agentflow'"):
        verify(["agentflo"])
