"""Every rule trips where it should, in words with the numbers, and is silent otherwise."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tiny_runs import trainer

from flowward.evaluation.hacking import Change, hacked
from flowward.evaluation.outcome import NOUNS
from flowward.system import threads
from flowward.training import log
from flowward.training.health import WINDOW, Health, held_up
from flowward.training.log import TrainProgress
from flowward.training.metrics import Step
from flowward.training.run import Run

WELL = {
    "reward": 0.52,
    "reward_std": 0.3,
    "zero_variance": 0.1,
    "latent_rms": 1.0,
    "duplicate_prompts": 0,
    "distance": 0.02,
    "residual": 1.0,
    "curvature_min": 0.1,
    "gradient_norm": 0.5,
    "loss": 0.0,
}


def after(*earlier: dict[str, float]) -> Health:
    """A health that has seen these iterations, each well but for what is given."""
    health = Health()
    for changes in earlier:
        health.check({**WELL, **changes})
    return health


def test_a_healthy_run_is_silent() -> None:
    health = Health()
    assert all(health.check(WELL) == [] for _ in range(50))


@pytest.mark.parametrize(
    ("health", "changes", "expected"),
    [
        (
            Health(),
            {"reward": 0.25, "reward_std": 0.0, "zero_variance": 1.0},
            "all images got the same reward, 0.25, so there is no learning signal: check the reward, or use a softer "
            "one",
        ),
        (
            Health(),
            {"zero_variance": 0.625},
            "62% of the groups have equal rewards and teach nothing: use a softer reward, larger groups, or prompts "
            "that are neither too easy nor too hard",
        ),
        (
            Health(),
            {"distance": 0.3},
            "the policy is far from its old copy (mean(d^2) = 0.3): lower the learning rate, or the decay of the old "
            "copy",
        ),
        (
            Health(),
            {"distance": 1e-4, "old_nats": 80.4},
            "the policy is far from its old copy (80.4 nats away, more than 64, so samples of the old copy say little "
            "about it): lower the learning rate, or the decay of the old copy",
        ),
        (
            Health(),
            {"curvature_min": -0.9},
            "the loss of some training points has no minimum (curvature -0.9), because some advantages are very low: "
            "set gamma to 1-A, raise gamma, or use --mix rewards",
        ),
        (
            Health(),
            {"curvature_min": 0.01},
            "the loss is almost flat at some training points (curvature 0.01), so single bad samples can have a large "
            "effect: raise gamma",
        ),
        (
            after({}),
            {"latent_rms": 1.2},
            "the final latents are 20% larger than at the start, so brightness or contrast may drift: check the sample "
            "images",
        ),
        (
            after({}),
            {"latent_rms": 0.8},
            "the final latents are 20% smaller than at the start, so brightness or contrast may drift: check the "
            "sample images",
        ),
        (
            after({"residual": 0.4}),
            {"residual": 0.8},
            "the flow-matching error on the policy's own samples is 2.0 times its first value: lower the learning "
            "rate, or raise the weight of the reference model",
        ),
        (
            Health(),
            {"first_ratio_in_clips_max": 0.18},
            "a ratio differs from 1 by 0.18 of the clip before the first update, because the network gives different "
            "outputs in sampling and in training: use equal batch sizes (--rollout-batch, --microbatch) and "
            "--precision float32",
        ),
        (
            after(*[{}] * 5),
            {"gradient_norm": 3.0},
            "the gradient norm jumped to 3 (recent median 0.5) and was clipped: if this happens often, lower the "
            "learning rate",
        ),
        (
            Health(),
            {"duplicate_prompts": 3},
            "3 prompts occurred more than once in this iteration and counted twice: use more prompts, or fewer groups "
            "per iteration",
        ),
        (
            Health(),
            {"missing_scores": 1},
            "1 answer of a judge could not be read, so the mean score of the other images of the prompt was used: if "
            "this happens often, check the judge's template and max_tokens",
        ),
    ],
)
def test_a_rule_trips_alone(health: Health, changes: dict[str, float], expected: str) -> None:
    assert health.check({**WELL, **changes}) == [expected]


@pytest.mark.parametrize(
    ("health", "changes"),
    [
        (Health(), {"zero_variance": 0.5}),
        (Health(), {"distance": 0.25}),
        (Health(), {"distance": 9.0, "old_nats": 64.0}),  # where nats are known, they decide
        (Health(), {"curvature_min": 0.05}),
        (Health(), {"first_ratio_in_clips_max": 0.1}),
        (after({}), {"latent_rms": 1.149}),
        (after({"residual": 0.4}), {"residual": 0.599}),
        (after({}), {"latent_rms": 0.851}),
        (after(*[{}] * 5), {"gradient_norm": 2.5}),
        (after(*[{}] * 4), {"gradient_norm": 9.0}),  # too early to say
    ],
)
def test_a_rule_has_a_threshold(health: Health, changes: dict[str, float]) -> None:
    assert health.check({**WELL, **changes}) == []


def test_several_rules_may_trip_at_once() -> None:
    assert len(after({}).check({**WELL, "latent_rms": 2.0, "distance": 1.0, "duplicate_prompts": 1})) == 3


def test_an_algorithm_without_these_figures_is_not_judged_by_them() -> None:
    assert Health().check({k: v for k, v in WELL.items() if k not in ("distance", "residual", "curvature_min")}) == []


def test_drift_is_measured_from_the_first_iteration() -> None:
    health = after({"latent_rms": 1.0}, *[{"latent_rms": 1.1}] * 50)
    assert len(health.check({**WELL, "latent_rms": 1.16})) == 1


def test_the_gradient_is_compared_with_recent_ones() -> None:
    health = after(*[{"gradient_norm": 9.0}] * 20, *[{}] * WINDOW)
    assert health.norms == [0.5] * WINDOW
    assert len(health.check({**WELL, "gradient_norm": 3.0})) == 1


def test_what_it_remembers_can_be_saved() -> None:
    one, other = after({"latent_rms": 2.0}, *[{}] * 30), Health()
    other.load_state_dict(one.state_dict())
    assert other == one
    assert other.norms is not one.norms


WAITING = (
    "another program uses this machine's cores: CPU threads of training wait for one 41% of the time; a lower "
    "--threads is faster now"
)


@pytest.mark.parametrize(("share", "expected"), [(0.59, [WAITING]), (0.67, []), (1.0, []), (None, [])])
def test_a_busy_machine_is_named(share: float | None, expected: list[str]) -> None:
    assert held_up(share) == expected


@pytest.mark.parametrize(("number", "device", "expected"), [(2, "cpu", 0.59), (1, "cpu", None), (2, "meta", None)])
def test_it_is_asked_where_several_threads_of_the_cpu_train(
    number: int, device: str, expected: float | None, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The figure differs from run to run, as the seconds do: it is among them, and not among the metrics."""

    @contextmanager
    def watched() -> Iterator[threads.Cores]:
        yield threads.Cores(0.59)

    one = trainer(tiny)
    monkeypatch.setattr(threads, "watched", watched)
    monkeypatch.setattr(torch, "get_num_threads", lambda: number)
    shown = [torch.empty(1, device=device)] if device != "cpu" else one.parameters
    learn = one.learn

    def learned(points: object) -> dict[str, float]:
        found = learn(points)  # type: ignore[arg-type]
        one.parameters = shown  # type: ignore[assignment]
        return found

    monkeypatch.setattr(one, "learn", learned)
    step = one.step()
    line = step.line(8)
    assert (WAITING in step.health) == (expected is not None)
    assert step.cpu_share == line["seconds"].get("cpu_share") == Step.of(line).cpu_share == expected
    assert "cpu_share" not in {**step.metrics, **Step.of(line).metrics, **Step.of(line).seconds}
    assert line["seconds"]["total"] == pytest.approx(sum(step.seconds.values()))


def test_the_terminal_says_the_same_complaint_once(capsys: pytest.CaptureFixture[str]) -> None:
    """The numbers change from iteration to iteration, and count for nothing."""
    health = after({}, *[{}] * 5)
    with TrainProgress(Run(), 0, Path("run")) as progress:
        for index in range(1, 5):
            bad = {"zero_variance": 0.6 + index / 50, "latent_rms": 1.3 + index / 7, "duplicate_prompts": 8 + index}
            metrics = {**WELL, **bad, "gradient_norm": 10.0**index}
            lines = health.check(metrics)
            assert len(lines) == 4
            progress.show(Step(index, metrics, lines, {"train": 1.0}))
    said = capsys.readouterr().out
    assert said.count("health warning, iteration 1:") == 4
    assert said.count("health warning, ") == 4


def test_two_guards_are_two_complaints(capsys: pytest.CaptureFixture[str]) -> None:
    """Their sentences begin alike."""
    rose = Change("scenes-strict", 0.2, 0.1, 0.3)
    fell = [hacked(rose, Change(name, -0.2, -0.3, -0.1)) or "" for name in ("balance", "aesthetic")]
    with TrainProgress(Run(), 0, Path("run")) as progress:
        for index in (1, 2):
            progress.show(Step(index, {"reward": 0.5, "gradient_norm": 0.1}, fell, {"train": 1.0}))
    said = capsys.readouterr().out
    assert said.count("while balance fell") == said.count("while aesthetic fell") == 1


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_bar_says_how_far_the_run_is(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the width: the figures beside it do not push the count and the time out."""
    said = io.StringIO()
    made = partial(Console, file=said, width=width, force_terminal=True, color_system=None)
    monkeypatch.setattr(log, "Console", made)
    overall = {"mean": 0.451, "low": 0.412, "high": 0.49, "n": 1200}
    scores = {"scenes-strict": {"overall": overall, "categories": {}}}
    with TrainProgress(Run(iterations=500), 0, Path("run")) as progress:
        progress.show(Step(0, {}, [], {}, {"scores": scores, "prompts": "scenes-held-out"}))
        progress.show(Step(123, {"reward": 0.543, "gradient_norm": 0.1}, [], {"train": 1.0}))
    bar = said.getvalue().split("\r")[-1]
    assert re.search(r"123/500 0:00:\d\d ETA", bar) and "reward 0.5" in bar  # a busy machine takes a second
    assert ("scenes-strict 45.1 %" in bar) == (width >= 80)


def test_runs_over_episodes_are_warned_in_their_own_words() -> None:
    said = " ".join(Health(NOUNS["episodes"]).check(WELL | {"zero_variance": 0.9, "duplicate_prompts": 2}))
    assert "questions that are neither too easy nor too hard" in said and "2 questions occurred more than once" in said
    assert "prompt" not in said and "image" not in said
