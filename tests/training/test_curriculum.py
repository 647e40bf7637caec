"""Which prompts rest, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, bright, trainer
from torch import Tensor

from flowward.prompts import PromptSet
from flowward.rewards import RewardError
from flowward.training.curriculum import Choice, Curriculum, equal_groups

MINE = PromptSet("mine", tuple("abcdefghij"), tuple("xxxxxyyyzz"))
SIZE = 3  # samples of a group


def rewards_of(choice: Choice, hopeless: Callable[[int], bool]) -> tuple[Tensor, Tensor]:
    """Equal rewards for hopeless prompts, others for the rest."""
    group = torch.arange(len(choice.indices)).repeat_interleave(SIZE)
    rows = [[0.0] * SIZE if hopeless(index) else [0.0, 1.0, 0.5] for index in choice.indices]
    return torch.tensor(rows).flatten(), group


def run(curriculum: Curriculum, iterations: int, count: int, hopeless: Callable[[int], bool]) -> list[Choice]:
    choices = []
    for _ in range(iterations):
        choices.append(curriculum.choose(0, count))
        curriculum.see(choices[-1], *rewards_of(choices[-1], hopeless))
    return choices


@pytest.mark.parametrize("count", [1, 3, 4, 15])
def test_where_nothing_rests_it_draws_as_ever(count: int) -> None:
    for prompts in (MINE, MINE.weighted(["x=2", "z=0"])):
        choices = run(Curriculum(prompts, seed=4), 8, count, lambda _: False)
        assert [list(each.indices) for each in choices] == [prompts.draw(4, k, count) for k in range(8)]
        assert all(each.skipped == 0 for each in choices)
        without = run(Curriculum(prompts, seed=4, rest=0), 8, count, lambda _: True)
        assert [each.indices for each in without] == [each.indices for each in choices]


@pytest.mark.parametrize(("visits", "rest"), [(1, 1), (1, 4), (2, 3), (3, 2)])
def test_a_hopeless_prompt_comes_as_often_as_it_should(visits: int, rest: int) -> None:
    """Of its turns, the first `visits` are visits; then `rest` are passed over for one visit."""
    curriculum = Curriculum(MINE, 0, visits, rest)
    turns: list[bool] = []
    for _ in range(200):
        (choice,) = run(curriculum, 1, 1, lambda index: index == 8)
        turns += [False] * choice.passed.count(8) + [True] * choice.indices.count(8)
        assert set(choice.passed) <= {8}
    expected = [True] * visits + ([False] * rest + [True]) * 100
    assert turns == expected[: len(turns)] and len(turns) > visits + 2 * rest


def test_one_that_differs_again_is_back() -> None:
    curriculum = Curriculum(MINE, 0, visits=1, rest=9)
    run(curriculum, 10, 3, lambda index: index == 8)
    assert curriculum.resting == pytest.approx(0.1)
    while 8 not in (choice := curriculum.choose(0, 3)).indices:
        curriculum.see(choice, *rewards_of(choice, lambda _: False))
    curriculum.see(choice, *rewards_of(choice, lambda _: False))
    assert curriculum.resting == 0
    assert all(not each.passed for each in run(curriculum, 20, 3, lambda _: False))


def test_a_set_is_never_empty() -> None:
    curriculum = Curriculum(MINE, 0, visits=1, rest=5)
    choices = run(curriculum, 60, 4, lambda _: True)
    assert all(len(each.indices) == 4 for each in choices)
    seen = Counter(index for each in choices for index in each.indices)
    assert set(seen) == set(range(10))
    skipped = sum(len(each.passed) for each in choices[20:]) / sum(len(each.passed) + 4 for each in choices[20:])
    assert 0.7 < skipped < 5 / 6  # of six turns five are rest, but for a prompt that comes twice in an iteration
    assert curriculum.resting > 0.5 and 0 < choices[-1].skipped < 1


def test_choosing_changes_nothing() -> None:
    curriculum = Curriculum(MINE, 0, visits=1, rest=2)
    run(curriculum, 7, 4, lambda index: index % 2 == 0)
    before = curriculum.state_dict()
    assert curriculum.choose(0, 4) == curriculum.choose(0, 4)
    after = curriculum.state_dict()
    assert all(torch.equal(torch.as_tensor(before[key]), torch.as_tensor(after[key])) for key in before)


def test_a_resumed_run_chooses_alike() -> None:
    def hopeless(index: int) -> bool:
        return index in (0, 3, 8)

    whole = run(Curriculum(MINE, 3, 2, 2), 20, 4, hopeless)
    first = Curriculum(MINE, 3, 2, 2)
    run(first, 9, 4, hopeless)
    state = first.state_dict()
    run(first, 2, 4, hopeless)  # goes on without changing what was saved
    second = Curriculum(MINE, 3, 2, 2)
    second.load_state_dict(state)
    assert run(second, 11, 4, hopeless) == whole[9:]


def test_equal_groups_by_hand() -> None:
    group = torch.tensor([1, 0, 1, 0, 2])
    assert equal_groups(torch.tensor([1.0, 0, 1, 1, 5]), group, 3).tolist() == [False, True, True]
    both = torch.tensor([[1.0, 0], [0, 0], [1, 1], [0, 0], [3, 4]])
    assert equal_groups(both, group, 3).tolist() == [True, False, True]  # one reward that differs is enough
    near = torch.tensor([1.0, 0, 1.01, 0, 5])
    assert equal_groups(near, group, 3, 0.1).tolist() == [True] * 3
    assert equal_groups(near, group, 3, 0.001).tolist() == [True, False, True]
    assert equal_groups(-near, group, 3, 0.001).tolist() == [True, False, True]
    order = torch.tensor([4, 2, 0, 3, 1])
    assert equal_groups(near[order], group[order], 3, 0.001).tolist() == [True, False, True]


def test_what_is_refused() -> None:
    for settings in ({"visits": 0}, {"rest": -1}, {"tolerance": float("nan")}):
        with pytest.raises(ValueError, match="a curriculum needs visits >= 1"):
            Curriculum(MINE, 0, **settings)  # type: ignore[arg-type]
    curriculum = Curriculum(MINE, 0)
    choice = curriculum.choose(0, 2)
    with pytest.raises(ValueError, match="some of 2 groups have no sample"):
        curriculum.see(choice, torch.zeros(2), torch.zeros(2).long())
    assert curriculum.choose(0, 2) == choice
    curriculum.see(choice, *rewards_of(choice, lambda _: True))
    with pytest.raises(ValueError, match="another state"):
        curriculum.see(choice, *rewards_of(choice, lambda _: True))
    with pytest.raises(ValueError, match="was saved with 3 prompts, but there are 10 now"):
        curriculum.load_state_dict(Curriculum(PromptSet("few", ("a", "b", "c"), ("x",) * 3), 0).state_dict())


# In a run


def picky(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    """It tells images of one prompt apart, and no others."""
    return torch.where(
        torch.tensor([text == TEXTS[0] for text in texts]), bright(images, texts), torch.ones(len(texts))
    )


def test_a_run_leaves_out_what_teaches_nothing(tiny: str) -> None:
    """After two rounds the prompt that teaches comes in every iteration, and metrics tell of the rest."""
    one = trainer(tiny, reward=picky, curriculum=5)
    steps = [one.step().metrics for _ in range(8)]
    assert steps[0]["skipped"] == steps[0]["resting"] == 0
    assert max(step["resting"] for step in steps) == pytest.approx(0.8)
    assert max(step["skipped"] for step in steps) > 0.5
    usual = trainer(tiny, reward=picky)
    assert "skipped" not in usual.step().metrics


def test_a_run_with_a_curriculum_goes_on_as_if_it_had_never_stopped(tiny: str) -> None:
    whole, first = (trainer(tiny, reward=picky, curriculum=2) for _ in "ab")
    expected = [whole.step().metrics for _ in range(6)][3:]
    for _ in range(3):
        first.step()
    rest = trainer(tiny, reward=picky, curriculum=2)
    rest.load_state_dict(first.state_dict())
    assert [rest.step().metrics for _ in range(3)] == expected


def test_an_iteration_that_fails_leaves_the_curriculum_as_it_was(tiny: str) -> None:
    one = trainer(tiny, reward=picky, curriculum=2)
    one.step()
    before = one.order.state_dict()
    one.reward = lambda *_: torch.full((8,), float("nan"))
    with pytest.raises(RewardError):
        one.step()
    after = one.order.state_dict()
    assert before["at"] == after["at"] and torch.equal(before["equal"], after["equal"])
