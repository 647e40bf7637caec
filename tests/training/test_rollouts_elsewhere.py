"""Images that drawers draw: the same bits as here, by weights of a fixed number of iterations before."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from local_studios import drawers, plain, plain_attention, remote, same, weights
from tiny_runs import algorithm, few_steps, fitting, small
from torch import Tensor

from flowward import ALGORITHMS
from flowward.algorithms import AWM, CRD, DPO, AdvantageFlow, FlowGRPO
from flowward.algorithms.algorithm import stale_of
from flowward.learning.points import Renoise
from flowward.process.plans import Chain
from flowward.process.policy import Condition
from flowward.process.rollout import Drawn, Sampler
from flowward.rewards import RewardError
from flowward.system import checkpoint
from flowward.training.curriculum import Choice
from flowward.training.rollouts.drawers import Block, Dealer, Sheet, Studio, Version
from flowward.training.trainer import Trainer

CASES: dict[str, Any] = {
    "anchored": algorithm(points=Renoise(2)),
    "recorded": FlowGRPO(rollout=Chain(3), beta=0.01),
    "tree": few_steps("tempflow_grpo"),
    "pairs": few_steps("fdfo"),
    "third copy": CRD(rollout=Sampler(2)),
    "taught": few_steps("opd"),
    "guided": algorithm(rollout=Sampler(2, guidance=2.0)),
}
cases = pytest.mark.parametrize("case", CASES)


@pytest.fixture(autouse=True)
def attention() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with plain_attention():
        yield
    torch.set_num_threads(threads)


def run_of(how: Any, **changes: Any) -> Any:
    size = {"group_size": 2} if how is CASES["pairs"] else {}
    return small(**{"rollout_batch": 4, "iterations": 9, **size, **changes})


@pytest.mark.parametrize(("many", "rank"), [(1, None), (2, 2)])
@cases
def test_what_drawers_draw_is_what_would_be_drawn_here(tiny: str, case: str, many: int, rank: int | None) -> None:
    """To the bit, in weights and metrics, however many drawers share the blocks."""
    how = CASES[case]
    here, there = plain(tiny, how, run_of(how), rank), remote(tiny, how, run_of(how), many=many, rank=rank)
    for _ in range(3):
        one, other = here.step(), there.step()
        assert one.metrics == other.metrics
        assert torch.equal(one.samples.images, other.samples.images)
    assert same(weights(here), weights(there)) and "versions" not in there.state_dict()
    for each in there.given:  # type: ignore[attr-defined]
        assert each.taken == sorted(set(each.taken)) and all(index == version for index, version in each.drawn)
    there.close()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.005)
    assert true()


class ByHand(Trainer):
    """Staleness as one would write it down: a second model draws with the weights that were noted k iterations ago."""

    def begin(self, tiny: str, stale: int, rank: int | None) -> None:
        (self.other,) = drawers(tiny, self.algorithm, self.run, 1, rank)
        self.k, self.noted = stale, list[dict[str, dict[str, Tensor]]]()
        self.collect = self.by_hand
        self.stale = stale

    def by_hand(self, asked: Any, condition: Condition, index: int, numbers: Tensor) -> Iterator[Any]:
        self.noted.append(weights(self))
        before = self.noted[max(0, index - self.k)][self.algorithm.behaviour]
        live = self.policy.weights.tensors(self.algorithm.behaviour)
        own = {key: tensor.clone().requires_grad_(live[key].requires_grad) for key, tensor in before.items()}
        self.other.take(index, own)
        for rows in numbers.split(self.run.rollout_batch):
            sheet = self.other.draw(Block.of(index, rows, asked, condition, self._group()[rows]))
            self.policy.evaluated += sheet.evaluations
            yield sheet.drawn, sheet.images

    def learn(self, points: Any) -> dict[str, float]:
        old = self.policy.weights.tensors("old") if stale_of(self.algorithm) == "anchored" else {}
        stale = self.noted[max(0, self.iteration - self.k)]
        with torch.no_grad():
            for key, tensor in old.items():
                tensor.copy_(stale["old"][key])
        found = super().learn(points)
        with torch.no_grad():
            for key, tensor in old.items():
                tensor.copy_(self.noted[-1]["old"][key])
        return found


@pytest.mark.parametrize(("stale", "rank"), [(1, None), (2, 2)])
@cases
def test_images_come_from_the_version_that_was_asked_for(tiny: str, case: str, stale: int, rank: int | None) -> None:
    """The run is that of a loop written by hand, and not that on policy."""
    how = CASES[case]
    hand = ByHand(*_parts(tiny, how, rank))
    hand.begin(tiny, stale, rank)
    there, here = remote(tiny, how, run_of(how), stale, 1, rank), plain(tiny, how, run_of(how), rank)
    for _ in range(3):
        one, other = hand.step(), there.step()
        here.step()
        assert one.metrics == other.metrics
    assert same(weights(hand), weights(there)) and not same(weights(here), weights(there))
    drawn = {each for one in there.given for each in one.drawn}  # type: ignore[attr-defined]
    assert drawn >= {(index, max(0, index - stale)) for index in range(3)}
    assert drawn <= {(index, max(0, index - stale)) for index in range(3 + stale)}
    there.close()


def _parts(tiny: str, how: Any, rank: int | None) -> tuple[Any, ...]:
    one = plain(tiny, how, run_of(how), rank)
    return one.algorithm, one.policy, one.reward, one.prompts, one.run, None, None, one.teachers


def test_later_images_are_drawn_while_the_last_ones_are_trained_on(tiny: str) -> None:
    """While iteration 0 is trained on, a drawer draws iteration 1; never further than the run goes."""
    there = remote(tiny, CASES["anchored"], run_of(None, iterations=2), stale=1)
    learn, seen = there.learn, list[set[int]]()

    def learning(points: Any) -> dict[str, float]:
        until(lambda: len(there.given[0].drawn) == 4)  # type: ignore[attr-defined]
        seen.append({index for index, _ in there.given[0].drawn})  # type: ignore[attr-defined]
        return learn(points)

    there.learn = learning  # type: ignore[method-assign]
    there.step()
    there.step()
    assert seen[0] == {0, 1} and seen[1] == {0, 1}
    there.close()
    assert there.given[0].closed  # type: ignore[attr-defined]


@pytest.mark.parametrize("stale", [1, 2])
@pytest.mark.parametrize("case", ["anchored", "recorded", "third copy"])
def test_a_stop_changes_nothing(tiny: str, tmp_path: Path, case: str, stale: int) -> None:
    """Stopped early or late and resumed, with another number of drawers."""
    whole = remote(tiny, CASES[case], run_of(None), stale)
    for stop in range(4):
        checkpoint.save(tmp_path / f"{stop}.safetensors", whole.state_dict())
        whole.step()
    expected = weights(whole)
    whole.close()
    for stop in (1, 3):
        part = remote(tiny, CASES[case], run_of(None), stale, many=2)
        state = checkpoint.load(tmp_path / f"{stop}.safetensors")
        assert list(state.get("versions", {})) == list(range(max(0, stop - stale), stop))
        part.load_state_dict(state)
        while part.iteration < 4:
            part.step()
        assert same(weights(part), expected), stop
        part.close()


def test_going_back_forgets_what_was_drawn_for_later(tiny: str, tmp_path: Path) -> None:
    one, other = (remote(tiny, CASES["anchored"], run_of(None), 1) for _ in range(2))
    one.step()
    checkpoint.save(tmp_path / "1.safetensors", one.state_dict())
    one.step()
    one.step()
    for each in (one, other):
        each.load_state_dict(checkpoint.load(tmp_path / "1.safetensors"))
        each.rollbacks = 1  # half the learning rate, so the versions with the same numbers are others
        each.step()
        each.step()
        each.step()
    assert same(weights(one), weights(other))
    one.close(), other.close()


@pytest.mark.parametrize(
    ("before", "after", "versions"), [(1, 0, {2: 2, 3: 3}), (0, 1, {2: 2, 3: 2}), (1, 2, {2: 1, 3: 1, 4: 2})]
)
def test_a_resumed_run_may_have_another_staleness(tiny: str, before: int, after: int, versions: dict[int, int]) -> None:
    """Images never come from weights that are no longer there: k counts from the change on."""
    one = remote(tiny, CASES["anchored"], run_of(None, iterations=5), before)
    one.step(), one.step()
    two = remote(tiny, CASES["anchored"], run_of(None, iterations=5), after)
    two.load_state_dict(one.state_dict())
    one.close()
    for _ in versions:
        two.step()
    two.close()
    drawn = dict(two.given[0].drawn)  # type: ignore[attr-defined]
    assert {index: drawn[index] for index in versions} == versions


def test_a_failed_iteration_leaves_no_trace(tiny: str) -> None:
    one, other = (remote(tiny, CASES["anchored"], run_of(None), 1) for _ in range(2))
    one.step()
    reward, old = one.reward, weights(one)

    def broken(*_: Any) -> Tensor:
        raise RuntimeError("no")

    one.reward = broken
    with pytest.raises(RewardError):
        one.step()
    assert same(weights(one), old)
    one.reward = reward
    one.learn, learn = broken, one.learn  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        one.step()
    one.learn = learn  # type: ignore[method-assign]
    one.step(), one.step()
    for _ in range(3):
        other.step()
    assert same(weights(one), weights(other))
    one.close(), other.close()


def test_an_error_while_learning_gives_back_the_old_of_now(tiny: str) -> None:
    one = remote(tiny, CASES["anchored"], run_of(None), 1)
    for _ in range(3):
        one.step()
    before = weights(one)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    one._gradient = broken  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        one.step()
    assert same(weights(one), before)
    one.close()


@dataclass
class Slow:
    """A drawer that waits for its turn; its sheets say which block they are of."""

    gate: threading.Event
    drawn: list[int]
    begun: int = 0
    closed: bool = False

    def take(self, version: int, weights: Any) -> None:
        if version == 13:
            raise ValueError("these weights belong to another model")

    def draw(self, block: Block) -> Sheet:
        self.begun += 1
        self.gate.wait(20)
        self.drawn.append(block.iteration)
        return Sheet(Drawn(torch.full((1,), float(block.iteration))), torch.zeros(1), 1)

    def close(self) -> None:
        self.closed = True
        self.gate.set()


def block(number: int) -> Block:
    return Block(number, torch.zeros(1), ("a",), Condition({"": torch.zeros(1)}), torch.zeros(1))


def test_a_slow_drawer_gets_fewer_blocks() -> None:
    """One does not answer until the other has drawn the rest; answers are in the order of the questions."""
    slow, fast = Slow(threading.Event(), []), Slow(threading.Event(), [])
    dealer = Dealer(Studio([slow, fast]))
    asked = [dealer.deal(Version(0, None), block(number)) for number in range(8)]
    until(lambda: slow.begun == fast.begun == 1)
    fast.gate.set()
    until(lambda: len(fast.drawn) == 7)
    assert not slow.drawn
    slow.gate.set()
    assert [each.result(20).drawn.x0.item() for each in asked] == list(range(8))
    assert len(slow.drawn) == 1 and sorted(slow.drawn + fast.drawn) == list(range(8))
    dealer.close()
    assert slow.closed and fast.closed


def test_what_is_not_wanted_is_not_drawn_and_errors_arrive() -> None:
    closed = []
    one = Slow(threading.Event(), [])
    dealer = Dealer(Studio([one], close=lambda: closed.append(True)))
    first, second, third = (dealer.deal(Version(0, None), block(number)) for number in range(3))
    bad = dealer.deal(Version(13, None), block(3))
    assert second.cancel()
    one.gate.set()
    first.result(20), third.result(20)
    with pytest.raises(ValueError, match="another model"):
        bad.result(20)
    one.gate.clear()
    late = [dealer.deal(Version(0, None), block(number)) for number in (4, 5)]
    until(late[0].running)
    dealer.close()
    assert one.drawn == [0, 2, 4] and closed and not late[1].done()


STALE = {  # of each algorithm with its own settings, as the papers have them: why it may be given older samples
    "recorded": (
        *("ddpo", "flow_grpo", "flow_grpo_fast", "dance_grpo", "mix_grpo", "mix_grpo_flash"),
        *("tempflow_grpo", "g2rpo", "grpo_guard", "flow_dppo", "fdfo"),
        *("flash_grpo", "turningpoint_grpo", "branch_grpo"),
    ),
    "anchored": ("advantageflow", "flowawr", "diffusion_nft", "dgpo", "crd", "meanflow_advantage"),
    "free": ("dpo", "opd", "draft", "refl", "srpo"),
    "none": ("awm", "ram", "rvm", "vgrpo", "adjoint_matching"),
}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, names in STALE.items() for name in names])
def test_every_algorithm_says_what_it_allows(tiny: str, kind: str, name: str) -> None:
    how = few_steps(name)
    assert stale_of(how) == kind
    run = run_of(None, group_size=2 if name == "fdfo" else 4, microbatch=7 if name == "branch_grpo" else 8)
    if kind == "none":
        with pytest.raises(ValueError, match=r"^\w+ with behaviour 'policy' assumes .* set --stale 0"):
            remote(tiny, how, run, 1)
        return
    one = remote(fitting(tiny, how), how, run, 1)
    found = [one.step().metrics for _ in range(3)]
    assert all("first_ratio_max" not in each for each in found)  # the shortcut of a policy that has just drawn
    assert found[2]["loss"] != 0
    one.close()


def test_the_table_of_algorithms_is_whole() -> None:
    assert sorted(name for names in STALE.values() for name in names) == sorted(ALGORITHMS)


@pytest.mark.parametrize(
    ("how", "stale"),
    [
        (AWM(behaviour="old"), "anchored"),
        (AWM(), "none"),
        (AdvantageFlow(behaviour="policy"), "none"),
        (CRD(behaviour="old"), "anchored"),
        (CRD(behaviour="policy"), "none"),
        (DPO(behaviour="old"), "free"),
        (object(), "none"),  # a user's own, which says nothing
    ],
)
def test_what_it_allows_may_depend_on_what_draws(how: Any, stale: str) -> None:
    assert stale_of(how) == stale


def test_a_curriculum_cannot_look_ahead(tiny: str) -> None:
    with pytest.raises(ValueError, match=r"^a curriculum chooses prompts by the last rewards.*--stale 0 or --curr"):
        remote(tiny, CASES["anchored"], run_of(None, curriculum=2), 1)
    one = remote(tiny, CASES["anchored"], run_of(None, curriculum=2))
    one.step()
    one.close()


def test_prompts_of_later_iterations_are_theirs(tiny: str) -> None:
    one, asked = remote(tiny, CASES["anchored"], run_of(None), 2), list[tuple[int, Choice]]()
    choose = one.order.choose

    def noted(index: int, count: int) -> Choice:
        asked.append((index, choose(index, count)))
        return asked[-1][1]

    one.order = replace(one.order)  # type: ignore[type-var]
    object.__setattr__(one.order, "choose", noted)
    one.step()
    one.close()
    assert [index for index, _ in asked] == [0, 0, 1, 2]
    assert len({choice.indices for _, choice in asked}) == 3
