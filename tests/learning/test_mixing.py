"""Several rewards, and rewards that are remembered."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from resumed_runs import BUDGET, assert_same, metrics, state, train
from tiny_runs import TEXTS, algorithm, small, trainer
from torch import Tensor

from flowward import models, prompts, rewards
from flowward.algorithms import DPO, FDFO, DiffusionNFT, TempFlowGRPO
from flowward.cli import main
from flowward.learning.credit import CentredRMS, Softmax, ZScore
from flowward.learning.mixing import MIXES, RewardBuffer, advantages_first, correlations, gdpo, pareto, rewards_first
from flowward.learning.points import Renoise
from flowward.process.plans import Branches
from flowward.process.rollout import Pairs, Sampler
from flowward.training.run import Run
from flowward.training.trainer import Trainer

GROUP = torch.tensor([0, 0, 1, 1])
REWARDS = torch.tensor([[0.0, 10.0], [2.0, 10.0], [1.0, 30.0], [1.0, 50.0]])
WEIGHTS = torch.tensor([1.0, 0.1])
SIGN = ZScore("group", 1e-12)  # of two values: +1 and -1


def close(a: Tensor, b: list[float], atol: float = 1e-9) -> None:
    torch.testing.assert_close(a.double(), torch.tensor(b, dtype=torch.float64), rtol=0, atol=atol)


# Mixes


def test_mixes_by_hand() -> None:
    """Group 0 differs in the first reward, group 1 in the second."""
    close(rewards_first(lambda r, g: r, REWARDS, WEIGHTS, GROUP), [1, 3, 4, 6], 1e-6)
    close(rewards_first(SIGN, REWARDS, WEIGHTS, GROUP), [-1, 1, -1, 1])
    close(advantages_first(SIGN, REWARDS, WEIGHTS, GROUP), [-1, 1, -0.1, 0.1], 1e-8)
    spread = ((1 + 0.01) / 2) ** 0.5
    close(gdpo(SIGN, REWARDS, WEIGHTS, GROUP, 1e-12), [-1 / spread, 1 / spread, -0.1 / spread, 0.1 / spread], 1e-7)


@pytest.mark.parametrize("credit", [ZScore("group"), ZScore(), CentredRMS(), Softmax()])
def test_one_reward_is_mixed_with_nothing(credit: Any) -> None:
    """To the bit, but for what gdpo divides by."""
    reward = torch.rand(12, generator=torch.Generator().manual_seed(0))
    group = torch.arange(12) % 3
    alone = credit(reward, group)
    for name in ("rewards", "advantages"):
        assert torch.equal(MIXES[name](credit, reward[:, None], torch.ones(1), group), alone)  # type: ignore[index]
    close(gdpo(credit, reward[:, None], torch.ones(1), group), (alone / (alone.std(correction=0) + 1e-4)).tolist())


def test_the_unit_of_a_reward_matters_to_sums_of_rewards_alone() -> None:
    far = REWARDS * torch.tensor([1.0, 1000.0])
    for name, mix in MIXES.items():
        same = torch.allclose(mix(SIGN, far, WEIGHTS, GROUP), mix(SIGN, REWARDS, WEIGHTS, GROUP))
        assert same or name == "rewards"
    one = torch.tensor([[0.0, 3.0], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    assert rewards_first(SIGN, one, torch.ones(2), GROUP)[1] < 0  # the second reward has the larger spread
    close(advantages_first(SIGN, one, torch.ones(2), GROUP), [0, 0, 0, 0])


@pytest.mark.parametrize("mix", MIXES.values())
def test_a_group_whose_rewards_are_all_equal_gives_exactly_zero(mix: Any) -> None:
    values = torch.tensor([[0.3, 7.1], [0.3, 7.1], [0.1, 2.0], [0.7, 1.0]])
    for credit in (ZScore("group"), ZScore(), CentredRMS(), Softmax()):
        assert (mix(credit, values, torch.tensor([0.7, 0.3]), GROUP)[:2] == 0).all()


@pytest.mark.parametrize("mix", MIXES.values())
def test_order_does_not_matter(mix: Any) -> None:
    order = torch.tensor([2, 0, 3, 1])
    there = mix(ZScore("group"), REWARDS[order], WEIGHTS, GROUP[order])
    close(there, mix(ZScore("group"), REWARDS, WEIGHTS, GROUP)[order].tolist())


def test_pareto_by_hand() -> None:
    """The first dominates the third, the second none: shares of the two others. Scales of rewards do not matter."""
    rewards, group = torch.tensor([[2.0, 2.0], [3.0, 0.0], [1.0, 1.0], [5.0, 5.0]]), torch.tensor([0, 0, 0, 1])
    found = pareto(lambda values, _: values, rewards, torch.tensor([1.0, 1.0]), group)
    close(found, [0.5, 0.0, -0.5, 0.0])
    scaled = pareto(lambda values, _: values, rewards * torch.tensor([10.0, 0.1]), torch.tensor([3.0, 0.2]), group)
    assert torch.equal(scaled, found)
    level = torch.tensor([[2.0, 1.0], [2.0, 0.0], [2.0, 0.0]])  # better by one reward and equal by the other is enough
    close(pareto(lambda values, _: values, level, torch.ones(2), torch.zeros(3).long()), [1.0, -0.5, -0.5])
    alone = pareto(lambda values, _: values, rewards, torch.tensor([1.0, 0.0]), group)
    close(alone, [0.0, 1.0, -1.0, 0.0])  # the rank by the first
    turned = pareto(lambda values, _: values, rewards, torch.tensor([-1.0, 0.0]), group)
    assert torch.equal(turned, -alone)


def test_correlations_are_those_within_groups() -> None:
    """A reward that differs between prompts alone goes together with nothing; numpy agrees on one group."""
    values = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double()
    one = correlations(values, torch.zeros(8, dtype=torch.long))
    torch.testing.assert_close(one, torch.corrcoef(values.T))
    group = torch.arange(2).repeat_interleave(4)
    shifted = correlations(values + 100 * group[:, None], group)
    torch.testing.assert_close(shifted, correlations(values, group))
    constant = torch.stack([values[:, 0], group.double()], 1)
    close(correlations(constant, group)[0], [1.0, 0.0])


def test_the_trainer_mixes_and_tells_each_reward(tiny: str) -> None:
    spec = ["scenes-soft", "balance=0.5"]
    found = {}
    for mix in MIXES:
        one = trainer(tiny, reward=rewards.load(spec), mix=mix)
        rollout, images = one.sample(list(TEXTS[:2]), 0)
        texts = [TEXTS[g] for g in rollout.group.tolist()]
        each = torch.stack([reward(images, texts) for _, _, reward in rewards.terms(one.reward)], 1)
        assert each.shape == (8, 2)
        done = one.credit(rollout, each, list(TEXTS[:2]))
        torch.testing.assert_close(done.reward, each[:, 0] + 0.5 * each[:, 1])
        expected = MIXES[mix](CentredRMS(), each, torch.tensor([1.0, 0.5]), rollout.group)
        each_apart = expected.ndim == 2
        assert torch.equal(done.advantage, expected.mean(1) if each_apart else expected)
        assert torch.equal(done.apart, expected) if each_apart else done.apart is None  # type: ignore[arg-type]
        found[mix] = expected
        told = one.step().metrics
        assert told["reward/scenes-soft"] + 0.5 * told["reward/balance"] == pytest.approx(told["reward"])
        assert -1 <= told["correlation/scenes-soft/balance"] <= 1
    assert not torch.equal(found["rewards"], found["advantages"])
    assert "reward/reward" not in trainer(tiny).step().metrics


# The buffer


def of(rows: list[float]) -> Tensor:
    return torch.tensor(rows)[:, None]


def test_a_buffer_holds_the_last_rewards_of_each_prompt() -> None:
    buffer = RewardBuffer(4)
    first = torch.zeros(2, dtype=torch.long)
    buffer.add(of([1.0, 2.0]), first, ["a"])
    buffer.add(of([3.0, 4.0, 5.0]), torch.tensor([0, 0, 1]), ["a", "b"])
    buffer.add(of([6.0]), first[:1], ["a"])
    values, prompt = buffer.beside(of([7.0, 8.0, 9.0]), torch.arange(3), torch.tensor([1, 1, 0]), ["b", "a"])
    assert values.flatten().tolist() == [7, 8, 9, 5, 4, 6]  # b has three with its new one; a four: the last two before
    assert prompt.tolist() == [1, 1, 0, 0, 1, 1]


def test_a_text_that_comes_twice_is_one_prompt() -> None:
    buffer = RewardBuffer(8)
    _, prompt = buffer.beside(of([1.0, 2.0, 3.0]), torch.arange(3), torch.arange(3), ["a", "b", "a"])
    assert prompt.tolist() == [0, 1, 0]
    buffer.add(of([1.0, 2.0, 3.0]), torch.arange(3), ["a", "b", "a"])
    values, _ = buffer.beside(of([0.0]), torch.arange(1), torch.arange(1), ["a"])
    assert values.flatten().tolist() == [0, 1, 3]


def test_without_a_buffer_nothing_is_added() -> None:
    buffer = RewardBuffer(0)
    buffer.add(of([1.0]), torch.arange(1), ["a"])
    values, cohort = buffer.beside(of([2.0]), torch.tensor([5]), torch.arange(1), ["a"])
    assert (values.tolist(), cohort.tolist(), buffer.state_dict()) == ([[2.0]], [5], {"kinds": [], "kept": {}})


def test_a1_of_a_buffer() -> None:
    """DDPO's tracker by hand: mean 3, variance 2 of 1 to 5; and the batch where a prompt has too few."""
    buffer, credit = RewardBuffer(5), ZScore("group", 1e-6, least=4)
    buffer.add(of([9.0, 1.0, 2.0, 3.0]), torch.zeros(4, dtype=torch.long), ["a"])
    group = torch.tensor([0, 0, 1])
    values, prompt = buffer.beside(of([4.0, 5.0, 8.0]), group, group, ["a", "b"])
    found = credit(values[:, 0], prompt)[:3]
    every = torch.tensor([4.0, 5.0, 8.0, 1.0, 2.0, 3.0])
    close(found, [1 / 2**0.5, 2 / 2**0.5, ((8 - every.mean()) / every.std(correction=0)).item()], 1e-5)


def test_a1_rewards_are_compared_with_the_batch_until_there_are_enough() -> None:
    reward, group = torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0, 0, 1])
    pooled = ZScore("pooled", 1e-6)(reward, torch.zeros(3))
    close(ZScore("group", 1e-6, least=3)(reward, group), pooled.tolist())
    close(ZScore("group", 1e-6, least=2)(reward, group), [-1, 1, pooled[2].item()], 1e-5)
    assert torch.equal(ZScore("group", 1e-6)(reward, group), ZScore("group", 1e-6, least=1)(reward, group))


def test_a_run_with_one_image_per_prompt_learns_from_those_before(tiny: str) -> None:
    texts = prompts.of("two", TEXTS[:2])
    how = algorithm(credit=ZScore("group"))
    run = small(images_per_update=2, group_size=1, microbatch=2, reward_buffer=3)

    def reward(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
        return images.mean((1, 2, 3)) + torch.tensor([float(text == TEXTS[0]) for text in texts])

    one = Trainer(how, models.load(tiny, precision="float32"), reward, texts, run)
    assert one.step().metrics["zero_variance"] == 1  # nothing to compare with yet
    assert one.step().metrics["zero_variance"] == 0
    for _ in range(3):
        one.step()
    assert {len(kept) for kept in one.buffer.state_dict()["kept"].values()} == {3}


def test_exemplars_are_not_remembered(tiny: str) -> None:
    def graft(rollout: Any, texts: list[str], index: int) -> Any:
        return replace(rollout, exemplar=torch.arange(8) % 4 == 0)

    texts, run = prompts.of("mine", TEXTS), small(reward_buffer=9)
    one = Trainer(
        algorithm(),
        models.load(tiny, precision="float32"),
        lambda i, t, m=None: i.mean((1, 2, 3)),
        texts,
        run,
        graft=graft,
    )
    one.step()
    assert [len(kept) for kept in one.buffer.state_dict()["kept"].values()] == [3, 3]


def test_a_failed_iteration_remembers_nothing(tiny: str) -> None:
    one = trainer(tiny, reward_buffer=9)
    one.step()
    before = {text: kept.clone() for text, kept in one.buffer.state_dict()["kept"].items()}
    one.update = lambda number: 1 / 0  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(ZeroDivisionError):
        one.step()
    assert_same(one.buffer.state_dict()["kept"], before)


@pytest.mark.processor
def test_resume_with_a_buffer_is_exact(tiny: str, tmp_path: Path) -> None:
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(TEXTS[:2]))
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    how = [*BUDGET, "--model", tiny, "--prompts", str(texts), "--reward-buffer", "12", "--evaluate-every", "2"]
    train(*how, "--output", whole, "--iterations", "4")
    train(*how, "--output", halves, "--iterations", "2")
    train("--resume", halves, "--iterations", "4")
    assert_same(state(whole), state(halves))
    assert {len(kept) for kept in state(whole)["rewards"]["kept"].values()} == {12}
    assert metrics(whole) == metrics(halves)


def test_a_single_reward_is_not_compared_with_what_another_gave(tiny: str) -> None:
    one = trainer(tiny, reward=rewards.load("balance"), reward_buffer=9)
    one.step()
    kept = one.state_dict()
    for name, remembered in (("balance", True), ("jpeg-compressibility", False)):
        other = trainer(tiny, reward=rewards.load(name), reward_buffer=9)
        other.load_state_dict(kept)
        assert bool(other.buffer.state_dict()["kept"]) == remembered


@pytest.mark.parametrize(
    ("how", "size"),
    [
        (DPO(rollout=Sampler(2)), 4),
        (FDFO(rollout=Pairs(2)), 2),
        (TempFlowGRPO(rollout=Branches(3, fanout=2)), 4),
    ],
)
def test_images_that_are_compared_with_each_other_alone_refuse_a_buffer(tiny: str, how: Any, size: int) -> None:
    assert trainer(tiny, how, group_size=size, rollout_batch=8)
    with pytest.raises(ValueError, match="compares images of one iteration only"):
        trainer(tiny, how, group_size=size, rollout_batch=8, reward_buffer=16)


def test_any_other_algorithm_may_have_one(tiny: str) -> None:
    how = DiffusionNFT(rollout=Sampler(2), points=Renoise(1))
    assert trainer(tiny, how, reward_buffer=16).step().index == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"group_size": 1}, "advantages compare images of one prompt: use at least 2"),
        ({"group_size": 0, "reward_buffer": 5}, "use at least 2"),
        ({"reward_buffer": -1}, "reward_buffer must be between 0 and 1,000,000"),
        ({"mix": "gdop"}, "unknown mix of rewards 'gdop'; did you mean 'gdpo'"),
    ],
)
def test_bad_settings_are_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Run(**{"images_per_update": 8, "group_size": 4, **changes})


@pytest.mark.processor
def test_from_the_command_line(tiny: str, tmp_path: Path) -> None:
    words = f"train --model {tiny!r} --algorithm mix_grpo --reward scenes balance=0.5 --mix gdpo --iterations 1 "
    words += "--images-per-update 8 --group-size 4 --microbatch 8 --evaluation.images 6 --algorithm.rollout.steps 6 "
    words += f"--algorithm.rollout.window.high 5 --output {str(tmp_path / 'run')!r}"
    assert main(shlex.split(words)) == 0
    assert {"reward/scenes", "reward/balance"} < metrics(tmp_path / "run")[1].keys()
