"""MeanFlowAdvantage: T28 to T31 of its laws are in flowward/verify/jumps.py; here what a trainer makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, TWO_TIMES, algorithm, bright, small
from torch import Tensor

from flowward import models, prompts, verify
from flowward.algorithms import AdvantageFlow, MeanFlowAdvantage
from flowward.algorithms.meanflow_advantage import drift
from flowward.evaluation.evaluate import Evaluation, Evaluator, draw
from flowward.learning.jumps import RenoiseJumps
from flowward.learning.points import Renoise
from flowward.process.rollout import Sampler
from flowward.process.times import JumpTimes
from flowward.training.trainer import Trainer

FEW = MeanFlowAdvantage(rollout=Sampler(2, solver="jump"))


def trainer(folder: str, how: Any = FEW, **changes: Any) -> Trainer:
    return Trainer(how, models.load(folder, None, "float32"), bright, prompts.of("mine", TEXTS), small(**changes))


def test_28_to_31_every_law_holds() -> None:
    """The identity, both forms of the loss, the moved jumps of one round, and AdvantageFlow where s = t."""
    report = verify.verify(["meanflow_advantage"])
    assert not [f"{check.law}: {check.measured}" for check in report.failures]
    assert any("bit for bit" in check.law for check in report.checks)


def test_31_with_jumps_of_length_0_alone_it_is_advantageflow(tiny: str) -> None:
    """The same samples, points and losses in a whole iteration, to the bit: what dhat is does not matter."""

    class Still(RenoiseJumps):
        def __call__(self, rollout: Any, key: Any) -> Any:
            made = Renoise(self.per_image)(rollout, key)
            take = made.take
            object.__setattr__(made, "take", lambda numbers: _still(take(numbers)))
            return made

    def _still(points: Any) -> Any:
        return replace(points, condition=points.condition.until(points.t))

    plain = AdvantageFlow(gamma=1.1, rollout=Sampler(2), old=FEW.old)
    jumps = replace(FEW, rollout=Sampler(2), points=Still(2))
    first, second = (trainer(tiny + TWO_TIMES, how) for how in (plain, jumps))
    for _ in range(2):
        one, two = first.step().metrics, second.step().metrics
        for key in ("loss", "gradient_norm", "distance", "residual"):
            assert one[key] == two[key], key


def test_gamma_of_the_first_iteration_is_that_of_the_advantages(tiny: str) -> None:
    """`gamma: auto` divides this loss by its gamma, drift and all; before the second one it knows no more."""
    chosen = trainer(tiny + TWO_TIMES, replace(FEW, gamma="auto")).step().metrics
    fixed = trainer(tiny + TWO_TIMES, replace(FEW, gamma=chosen["gamma"])).step().metrics
    assert chosen["loss"] == pytest.approx(fixed["loss"] / chosen["gamma"], rel=1e-6)
    assert chosen["residual"] == fixed["residual"]


def test_dhat_is_a_slope_inside_the_interval() -> None:
    """Of a function that is linear in t it is exact, also where a side is cut off at 0 or 1; it has no gradient."""
    t, s = torch.tensor([0.0, 0.002, 0.5, 1.0]), torch.tensor([0.0, 0.0, 0.5, 0.25])
    low, high = (t - 0.005).clamp_min(0), (t + 0.005).clamp_max(1)
    ahead, behind = (3 * each[:, None].expand(4, 2).clone().requires_grad_() for each in (high, low))
    found = drift(ahead, behind, t, s)
    torch.testing.assert_close(found, 3 * (t - s)[:, None].expand(4, 2), rtol=1e-4, atol=0)
    assert not found.requires_grad and (found[2] == 0).all()


def test_an_evaluation_measures_the_semigroup_residual(tiny: str) -> None:
    """At evaluations alone, the same for the same weights, and a run without them does not pay for it."""
    one = trainer(tiny + TWO_TIMES, iterations=2, evaluate_every=2)
    texts = prompts.of("mine", TEXTS)
    evaluator = Evaluator(one.policy, Evaluation(images=4, sampler=Sampler(2)), texts, 2, {"bright": bright})
    steps = list(one.steps(evaluator))
    assert ["semigroup" in step.measures for step in steps] == [True, False, True]
    assert steps[0].measures["semigroup"] > 0
    again = trainer(tiny + TWO_TIMES)
    assert again._own_measures()["semigroup"] == pytest.approx(steps[0].measures["semigroup"], abs=1e-6)


def test_a_model_with_one_time_is_refused(tiny: str) -> None:
    with pytest.raises(ValueError, match=r"^MeanFlowAdvantage trains jumps .* has one: use a few-step model, such as"):
        trainer(tiny)


def test_velocities_do_not_train_the_jumps_that_draw(tiny: str) -> None:
    """AdvantageFlow may train the velocity of a model with two times, if it draws by that velocity."""
    with pytest.raises(ValueError, match="AdvantageFlow trains velocities, and a rollout with solver `jump` draws"):
        trainer(tiny + TWO_TIMES, algorithm(rollout=Sampler(2, solver="jump")))
    assert trainer(tiny + TWO_TIMES, algorithm()).step().metrics["gradient_norm"] > 0


def test_the_reward_of_jumps_rises(tiny: str) -> None:
    """By jumps alone: none of the points has s = t, and the images that are measured are drawn by jumps."""
    how = replace(FEW, rollout=Sampler(4, solver="jump"), points=RenoiseJumps(2, JumpTimes(0.0, 0.5)))
    one = trainer(tiny + TWO_TIMES, how, images_per_update=48, group_size=12, microbatch=96, warmup=0)
    texts = [TEXTS[number % len(TEXTS)] for number in range(48)]

    def measured() -> Tensor:
        return bright(draw(one.policy, texts, how.rollout, seed=1), texts)

    before = measured()
    for _ in range(8):
        one.step()
    gain = measured() - before  # of the same noise and prompts
    assert gain.mean() / (gain.std() / len(gain) ** 0.5) > 4
