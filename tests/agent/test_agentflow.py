"""AgentFlow's loss and its training points, by hand-computed numbers and by TRL's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from tiny_agents import trainer
from tiny_language import language
from torch import Tensor

from flowward.agent.algorithm import AgentFlow, k3, surrogate
from flowward.agent.episode import Ask, Episode, Said, Turn
from flowward.agent.points import Decisions, Trace, Turns
from flowward.agent.trainer import EpisodesLost, LogProbs
from flowward.learning.credit import ZScore
from flowward.learning.mixing import advantages_first
from flowward.system.asking import ServiceError
from flowward.system.streams import generator


def turn(prompt: Sequence[int], answer: Sequence[int], log_prob: float = -0.5) -> Turn:
    return Turn(tuple(prompt), Said("", tuple(answer), (log_prob,) * len(answer)))


def episode(*turns: Turn, failed: bool = False) -> Episode:
    return Episode("", turns, "", "failed" if failed else "stopped")


# Episode 0: turns of 1 and 3 tokens; 1: failed; 2: one turn of 2 tokens; 3: turns of 2, 1 and 1 tokens
EPISODES = [
    episode(turn([9, 9], [1]), turn([9, 9, 9], [1, 2, 3])),
    episode(turn([9], [5, 5]), failed=True),
    episode(turn([8], [4, 4])),
    episode(turn([7], [6, 6]), turn([7, 7], [6]), turn([7, 7, 7], [6])),
]


def trace(chosen: Any = "all") -> Trace:
    return Trace.of(EPISODES, range(4), chosen)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# The equation


def test_the_surrogate_by_hand() -> None:
    """Ratios 1/2, 9/10, 2 and 4 with A = 2 and A = -2, clipped to [0.8, 1.3]."""
    ratios = doubles(0.5, 0.9, 2, 4).log().expand(2, 4)
    zero, a = torch.zeros(2, 4), doubles(2, -2)
    rising, falling = [-1, -1.8, -2.6, -2.6], [1.6, 1.8, 4, 8]
    assert torch.allclose(surrogate(ratios, zero, a), torch.tensor([rising, falling], dtype=torch.float64))
    bounded = surrogate(ratios, zero, a, dual=3)
    assert torch.allclose(bounded, torch.tensor([rising, [1.6, 1.8, 4, 6]], dtype=torch.float64))


def test_a_ratio_that_overflows_is_finite() -> None:
    far = doubles(-800, 800).expand(2, 2).clone().requires_grad_()
    loss = surrogate(far, torch.zeros(2, 2), doubles(1, -1), dual=3)
    assert loss.flatten().tolist() == pytest.approx([0, -1.3, 0.8, 3])
    assert torch.autograd.grad(loss.sum(), far)[0].isfinite().all()


def test_k3_by_hand() -> None:
    """At d = 0, log 2 and -log 2: 0, 1 - log 2 and log 2 - 1/2."""
    found = k3(doubles(0, 0, 0), doubles(0, math.log(2), -math.log(2)))
    assert found.tolist() == pytest.approx([0, 1 - math.log(2), math.log(2) - 0.5])
    assert k3(doubles(0.0), doubles(1000.0)).isfinite().all()
    small = k3(torch.tensor([-1.0]), torch.tensor([-1.0 + 2**-20]))  # float32 would leave nothing of d^2 / 2
    assert small.item() == pytest.approx(2**-41, rel=1e-5)


# Training points


def test_a_trace_holds_the_planners_tokens_of_episodes_that_did_not_fail() -> None:
    found = trace()
    assert found.episode.tolist() == [0, 0, 2, 3, 3, 3]
    assert found.answers.tolist() == [1, 3, 2, 2, 1, 1]
    assert found.prompts.tolist() == [2, 3, 1, 1, 2, 3]
    assert found.answer.tolist() == [1, 1, 2, 3, 4, 4, 6, 6, 6, 6]
    assert len(found.log_prob) == 10
    assert trace("first").episode.tolist() == [0, 2, 3]
    assert trace("first").answers.tolist() == [1, 2, 2]
    assert trace("last").answers.tolist() == [3, 2, 1]
    assert Trace.cat([found, trace("last")]).episode.tolist() == [0, 0, 2, 3, 3, 3, 0, 2, 3]
    assert Trace.of(EPISODES[2:], [8, 9]).episode.tolist() == [8, 9, 9, 9]


def test_a_turn_without_tokens_is_no_training_point() -> None:
    """A server may answer with nothing. Then there is no decision, and no weight of 1 / 0."""
    found = Trace.of([episode(turn([9], []), turn([9, 9], [1])), episode(turn([9], []))], range(2))
    assert found.episode.tolist() == [0]
    points = Turns(found, doubles(1.0)).take(torch.tensor([0]))
    assert points.weight.tolist() == [[1.0]]


def test_points_are_padded_and_weighted() -> None:
    points = Turns(trace(), torch.arange(6, dtype=torch.float64)).take(torch.tensor([1, 0, 5]))
    assert points.prompt.tolist() == [[9, 9, 9], [-1, 9, 9], [7, 7, 7]]
    assert points.answer.tolist() == [[1, 2, 3], [1, -1, -1], [6, -1, -1]]
    assert points.advantage.tolist() == [1, 0, 5]
    assert points.weight.tolist() == [[1 / 6] * 3, [1 / 2, 0, 0], [1 / 3, 0, 0]]
    assert points.known["old"].tolist() == [[-0.5] * 3, [-0.5, 0, 0], [-0.5, 0, 0]]


def test_three_weightings_by_hand() -> None:
    def weights(weighting: Any, chosen: Any = "all") -> Any:
        found = trace(chosen)
        return pytest.approx(Turns(found, torch.zeros(len(found)), weighting).token_weights().tolist())

    assert weights("paper") == [1 / 2, 1 / 6, 1 / 2, 1 / 6, 1 / 3, 1 / 3]
    assert weights("episode") == [1 / 4, 1 / 4, 1 / 2, 1 / 4, 1 / 4, 1 / 4]
    assert weights("token") == [1] * 6
    assert weights("paper", "first") == [1, 1 / 2, 1 / 2]
    assert weights("paper", "last") == [1 / 3, 1 / 2, 1]


def test_the_sum_of_losses_is_divided_by_episodes_or_tokens() -> None:
    some = torch.tensor([1, 3, 5])  # of two episodes
    for weighting, total, part in (("paper", 3, 2), ("episode", 3, 2), ("token", 10, 6)):
        turns = Turns(trace(), torch.zeros(6), weighting)  # type: ignore[arg-type]
        assert turns.total(torch.arange(6)) == total
        assert turns.total(some) == part


def test_units_are_episodes_wherever_their_turns_lie() -> None:
    mixed = replace(trace(), episode=torch.tensor([4, 0, 4, 9, 0, 4]))
    assert [own.tolist() for own in Turns(mixed, torch.zeros(6)).units()] == [[1, 4], [0, 2, 5], [3]]


# Advantages


def advantages(statistics: Any, rewards: Sequence[float], lengths: Sequence[int], **more: Any) -> list[float]:
    turns = [episode(*[turn([9], [1])] * count) for count in lengths]
    found = AgentFlow(ZScore("group", 1e-12, 1), statistics).advantages(
        Trace.of(turns, range(len(turns))),
        torch.tensor(rewards, dtype=torch.float64)[:, None],
        torch.zeros(len(turns), dtype=torch.long),
        **{"kept": torch.ones(len(turns), dtype=torch.bool), **more},
    )
    return [round(each, 3) for each in found.tolist()]


def test_statistics_by_trajectory_and_by_turn() -> None:
    r, t = [1, 0, 1, 0], [3, 1, 1, 1]
    assert advantages("trajectory", r, t) == [0.866, 0.866, 0.866, -0.866, 0.866, -0.866]
    assert advantages("turn", r, t) == [0.645, 0.645, 0.645, -1.291, 0.645, -1.291]
    assert advantages("turn", r, [1, 1, 1, 1]) == advantages("trajectory", r, [1, 1, 1, 1])


@pytest.mark.parametrize("statistics", ["trajectory", "turn"])
def test_equal_outcomes_and_lone_survivors_teach_exactly_nothing(statistics: str) -> None:
    assert advantages(statistics, [0.1] * 3, [2, 1, 3]) == [0] * 6
    assert advantages(statistics, [1, 1, 0], [1, 2, 0], kept=torch.tensor([True, True, False])) == [0] * 3
    assert advantages(statistics, [1, 0], [2, 0], kept=torch.tensor([True, False])) == [0, 0]


def test_groups_and_rewards_are_kept_apart() -> None:
    """Two questions of two episodes, two rewards; the second counts three times and is turned round."""
    turns = [episode(turn([9], [1]))] * 4
    rewards = torch.tensor([[1.0, 5], [0, 5], [1, 7], [1, 9]], dtype=torch.float64)
    group, kept = torch.tensor([0, 0, 1, 1]), torch.ones(4, dtype=torch.bool)
    how = AgentFlow(ZScore("group", 1e-12, 1))
    found = how.advantages(Trace.of(turns, range(4)), rewards, group, kept, doubles(1, -3), advantages_first)
    one = math.sqrt(0.5)
    assert found.tolist() == pytest.approx([one, -one, 3 * one, -3 * one])


# TRL

# TRL 1.16.0, GRPOTrainer._compute_loss in eval mode with loss_type="grpo", epsilon 0.2, epsilon_high 0.3, beta 0.04,
# importance_sampling_level="token", on the float64 tensors below (completion_mask from LENGTHS, log-probabilities given
# in place of a model's), with advantages as in _generate_and_score_completions: scale_rewards="group", groups of 4.
LENGTHS = torch.tensor([1, 4, 3, 2, 4, 3, 2, 1])
REWARDS = doubles(1, 0, 1, 0, 0.5, 0, 0, 1)
TRL_ADVANTAGES = (
    0.8658754297607016, -0.8658754297607016, 0.8658754297607016, -0.8658754297607016,
    0.2610619498707955, -0.7831858496123865, -0.7831858496123865, 1.3053097493539774,
)  # fmt: skip
TRL_LOSS = {None: 0.007998028632872675, 1.4: 0.0030287317870738156}  # by `delta`
TRL_KL = 0.0024850963956846717
TRL_GRADIENT = (
    (0.00047581291, 0.0, 0.0, 0.0), (0.033110420661, 0.024419551386, 0.000118953227, 0.033049457442),
    (-0.036078142907, -0.026902630497, 8.1284292e-05, 0.0), (0.044179249927, 0.080971303405, 0.0, 0.0),
    (-0.005600059218, -0.009903467581, -0.007445920766, -0.005349642343),
    (0.044208200848, 0.032632743734, -0.000175284863, 0.0), (0.054219065466, 0.039947968537, 0.0, 0.0),
    (-0.147636637918, 0.0, 0.0, 0.0),
)  # fmt: skip


@dataclass(frozen=True)
class Given:
    """Log-probabilities that are given, [8, 4]."""

    log_p: Tensor
    reference: Tensor

    def at(self, name: str, points: Decisions) -> Tensor:
        return {"policy": self.log_p, "reference": self.reference}[name]


@pytest.mark.parametrize("dual", [None, 1.4])
def test_one_turn_per_episode_is_trls_grpo_loss(dual: float | None) -> None:
    b, j = torch.arange(8, dtype=torch.float64)[:, None], torch.arange(4, dtype=torch.float64)[None]
    log_p = (-0.2 - 0.1 * ((3 * b + 5 * j) % 7)).requires_grad_()
    old = log_p.detach() + 0.1 * ((2 * b + 3 * j) % 9 - 4)
    reference = log_p.detach() + 0.05 * ((b + 2 * j) % 5 - 2)
    found = Trace.of([episode(turn([9], [1] * count)) for count in LENGTHS.tolist()], range(8))
    how = AgentFlow(beta=0.04, dual=dual)
    group, kept = torch.arange(8) // 4, torch.ones(8, dtype=torch.bool)
    advantage = how.advantages(found, REWARDS[:, None], group, kept)
    assert advantage.tolist() == pytest.approx(TRL_ADVANTAGES, abs=1e-14)
    turns = how.points(found, advantage)
    points = turns.take(torch.arange(8)).knowing({"old": old})
    losses, watched = how.loss(Given(log_p, reference), points)
    loss = losses.sum() / turns.total(torch.arange(8))
    assert loss.item() == pytest.approx(TRL_LOSS[dual], abs=1e-14)
    assert ((watched["kl"] * LENGTHS).sum() / LENGTHS.sum()).item() == pytest.approx(TRL_KL, abs=1e-14)
    gradient = torch.autograd.grad(loss, log_p)[0]
    expected = torch.tensor(TRL_GRADIENT, dtype=torch.float64)
    if dual:
        expected[3, 1] = 0.000237906455  # the one token whose ratio is above 1.4 where A < 0
    assert (gradient - expected).abs().max() < 1e-12


# With a network


def batch(count: int = 6) -> tuple[LogProbs, Turns]:
    model = language()
    model.weights.add("reference")
    prompts = [(2, 8 + k, 3) * (1 + k % 2) for k in range(count)]
    draws = [torch.rand(8, dtype=torch.float64, generator=generator("test", k)) for k in range(count)]
    said = model.sample("policy", prompts, draws, 1.0, 8)
    turns = [Turn(own, each) for own, each in zip(prompts, said, strict=True)]
    pairs = [Episode("", (turns[k], turns[k + 1]), "", "stopped") for k in range(0, count, 2)]
    advantage = doubles(*[1, 1, -1, -1, 0.5, 0.5][:count])
    return LogProbs(model, 1.0), Turns(Trace.of(pairs, range(count // 2)), advantage)


def test_the_first_ratio_is_exactly_1_and_recorded_ones_are_close() -> None:
    models, turns = batch()
    points = replace(turns.take(torch.arange(6)), fresh=True)
    loss, watched = AgentFlow(beta=0.0).loss(models, points)
    assert torch.allclose(loss, -points.advantage / 2, atol=1e-15)
    assert not watched["log_ratio"].any()
    assert watched["first_ratio_max"].max() < 1e-5
    assert watched["first_ratio_in_clips_max"].max() < 1e-4


def test_microbatches_and_padding_change_only_rounding() -> None:
    models, turns = batch()
    parameters = list(models.language.weights.tensors("policy").values())
    how = AgentFlow(beta=0.1)

    def gradient(size: int) -> list[Tensor]:
        found = [torch.zeros_like(each) for each in parameters]
        for rows in torch.arange(6).split(size):
            loss, _ = how.loss(models, turns.take(rows))
            for total, each in zip(found, torch.autograd.grad(loss.sum(), parameters), strict=True):
                total += each
        return found

    whole = gradient(6)
    largest = max(each.abs().max().item() for each in whole)
    for size in (1, 4):
        for found, right in zip(gradient(size), whole, strict=True):
            assert (found - right).abs().max().item() < 1e-5 * largest


def test_a_server_that_loses_every_episode_ends_the_run_with_its_reason() -> None:
    """Also where log-probabilities are recomputed: there is nothing to recompute."""

    class Gone:
        elsewhere = True

        def __call__(self, weights: str, asks: Sequence[Ask], keys: Any) -> list[ServiceError]:
            return [ServiceError("the server is gone")] * len(asks)

    own = trainer(iterations=1)
    own.player = replace(own.player, sampler=Gone())  # type: ignore[arg-type]
    with pytest.raises(EpisodesLost, match="no episode of this iteration could be finished: the server is gone"):
        list(own.steps())


@pytest.mark.parametrize("statistics", ["trajectory", "turn"])
def test_no_turn_has_no_advantage(statistics: Any) -> None:
    nothing, kept = Trace.of([episode(turn([9], []))], [0]), torch.ones(1, dtype=torch.bool)
    assert len(AgentFlow(statistics=statistics).advantages(nothing, torch.ones(1, 1), torch.zeros(1).long(), kept)) == 0


# Settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"statistics": "episode"}, "unit of statistics"),
        ({"weights": "turns"}, "weighting of tokens"),
        ({"turns": "second"}, "choice of turns"),
        ({"low": 0.0}, r"low must lie in \(0, 1\], not 0"),
        ({"low": 1.5}, r"low must lie in \(0, 1\], not 1.5"),
        ({"low": math.nan}, "low must lie"),
        ({"high": 0.0}, "high"),
        ({"high": math.inf}, "high"),
        ({"beta": -1.0}, "beta"),
        ({"beta": math.nan}, "beta"),
        ({"dual": 1.0}, "dual must be above 1, not 1"),
        ({"dual": math.nan}, "dual must be above 1"),
    ],
)
def test_settings_without_a_meaning_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AgentFlow(**settings)


def test_without_the_kl_term_nothing_is_asked_of_the_reference() -> None:
    assert AgentFlow(beta=0.0).anchors == {}
    assert AgentFlow(beta=0.0).skips_silent
    assert AgentFlow().anchors == {"reference": 1.0}
    assert not AgentFlow().skips_silent
    assert AgentFlow().copies == {}
