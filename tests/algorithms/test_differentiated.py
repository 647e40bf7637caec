"""DRaFT, ReFL, SRPO and Adjoint Matching in the loop: decoder, prompts, evaluations, resuming, guards, refusals.

Their equations (T42 to T45 of the notes) are laws of `flowward verify`, which test_verify.py runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import REWARDED, TEXTS, bright, equal, few_steps, small, snapshot, trainer
from torch import Tensor

from flowward import ALGORITHMS, models, prompts, rewards
from flowward.algorithms import SRPO, AdjointMatching, DRaFT, ReFL
from flowward.algorithms.algorithm import differentiates
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.learning.trails import LastSteps, LateStep, SmallSteps, WholeTrajectories
from flowward.process.noise import Noise
from flowward.process.policy import PLAIN, Condition
from flowward.process.rollout import Rollout
from flowward.process.trails import Trail
from flowward.rewards import Sum, differentiable, gradient, refuse_without
from flowward.training import config
from flowward.training.assembly import train
from flowward.training.differentiated import RewardSlope, numbered
from flowward.training.trainer import Trainer

NAMES = [name for name in ALGORITHMS if name not in REWARDED and differentiates(ALGORITHMS[name])]
each = pytest.mark.parametrize("name", NAMES)


def one_of(tiny: str, name: str, rank: int | None = None, **changes: Any) -> Trainer:
    return trainer(tiny, few_steps(name), rank, microbatch=8, **changes)


def test_these_are_all() -> None:
    assert NAMES == ["draft", "refl", "srpo", "adjoint_matching"]


@each
@pytest.mark.parametrize("rank", [None, 2], ids=["full", "lora"])
def test_a_few_iterations_raise_the_reward(tiny: str, name: str, rank: int | None) -> None:
    """Brightness of the decoded picture, through the decoder; only the policy is trained."""
    one = one_of(tiny, name, rank, learning_rate=3e-3, warmup=0)
    if name == "adjoint_matching":
        one.algorithm = replace(one.algorithm, temperature=1e-4)
    decoder = {key: value.clone() for key, value in one.policy._autoencoder.state_dict().items()}  # type: ignore[attr-defined]
    found = [one.step().metrics for _ in range(4)]
    assert found[-1]["point_reward"] > found[0]["point_reward"]
    assert all(torch.equal(value, decoder[key]) for key, value in one.policy._autoencoder.state_dict().items())  # type: ignore[attr-defined]


@each
def test_a_resumed_run_is_the_uninterrupted_one(tiny: str, name: str) -> None:
    whole, first = one_of(tiny, name), one_of(tiny, name)
    for _ in range(2):
        whole.step()
    first.step()
    again = one_of(tiny, name)
    again.load_state_dict(first.state_dict())
    again.step()
    assert equal(snapshot(whole.policy), snapshot(again.policy))


@each
def test_the_size_of_a_microbatch_does_not_matter(tiny: str, name: str) -> None:
    gradients = []
    for size in (4, 16):
        one = trainer(tiny, few_steps(name), microbatch=size)
        one.optimiser = torch.optim.SGD(one.parameters, 1.0)
        one.run = replace(one.run, learning_rate=1.0, warmup=0, gradient_clip=1e9)
        before = snapshot(one.policy)
        one.step()
        gradients.append(torch.cat([(before[key] - now).flatten() for key, now in snapshot(one.policy).items()]))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=2e-7)


def test_the_decoder_gives_the_gradient_of_finite_differences(tiny: str) -> None:
    policy = models.load(tiny, precision="float32")
    x0 = torch.randn(3, *policy.latent_shape, generator=torch.Generator().manual_seed(0))
    weight = torch.rand(3, 3, *policy.image_size)

    def back(images: Tensor) -> tuple[Tensor, Tensor]:
        assert not images.requires_grad and torch.equal(images, policy.decode(x0))
        return (weight * images).sum((1, 2, 3)), weight

    values, slope = policy.pullback(x0, back)
    way = slope / slope.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    ahead, behind = ((weight * policy.decode(x0 + s * 1e-2 * way)).double().sum((1, 2, 3)) for s in (1, -1))
    torch.testing.assert_close((slope * way).sum((1, 2, 3)).double(), (ahead - behind) / 2e-2, rtol=0.01, atol=1e-4)
    torch.testing.assert_close(values, (weight * policy.decode(x0)).sum((1, 2, 3)))


def test_the_product_with_the_references_jacobian(tiny: str) -> None:
    """Against finite differences, for whole weights and adapters, after the policy has moved."""
    for rank in (None, 2):
        policy = models.load(tiny, rank, "float32")
        policy.weights.add("reference")
        with torch.no_grad():
            for tensor in policy.weights.tensors("policy").values():
                tensor.add_(0.02)
        x, t = torch.randn(2, *policy.latent_shape), torch.tensor([0.3, 0.8])
        condition, vector = policy.encode(TEXTS[:2]), torch.randn(2, *policy.latent_shape)
        v, found = policy.product("reference")(x, t, condition, vector)
        at = policy.under("reference")
        assert torch.equal(v, at(x, t, condition)) and not v.requires_grad and not found.requires_grad
        way = torch.randn_like(x)
        moved = (at(x + 1e-2 * way, t, condition) - at(x - 1e-2 * way, t, condition)) / 2e-2
        expected = (moved * vector).sum((1, 2, 3))
        torch.testing.assert_close((found * way).sum((1, 2, 3)), expected, rtol=0.02, atol=1e-2)
        assert all(tensor.grad is None for tensor in policy.weights.tensors("policy").values())


def test_each_row_is_scored_with_its_own_prompt(tiny: str) -> None:
    """And with the texts before it, each with its weight in each row."""
    policy, texts = models.load(tiny, precision="float32"), prompts.of("mine", TEXTS)
    seen: list[list[str]] = []

    @differentiable
    def length(images: Tensor, said: Sequence[str]) -> Tensor:
        seen.append(list(said))
        return images.mean((1, 2, 3)) * torch.tensor([float(len(each)) for each in said])

    condition = numbered(policy.encode([TEXTS[3], TEXTS[1]]), [TEXTS[3], TEXTS[1]], texts)
    rows = condition[torch.tensor([1, 0, 1])]
    slope = RewardSlope(policy, length, texts)
    x0 = torch.randn(3, *policy.latent_shape)
    mean = policy.decode(x0).mean((1, 2, 3))
    lengths = torch.tensor([float(len(TEXTS[number])) for number in (1, 3, 1)])
    score, plain = slope(x0, rows, PLAIN)
    assert seen == [[TEXTS[1], TEXTS[3], TEXTS[1]]]
    torch.testing.assert_close(score, mean * lengths)
    wording = {"no ": torch.tensor([1.0, 0.0, 2.0]), "": torch.tensor([0.0, -1.0, 0.0])}
    score, mixed = slope(x0, rows, wording)
    torch.testing.assert_close(score, mean * torch.tensor([1.0, -1.0, 2.0]) * (lengths + torch.tensor([3.0, 0, 3.0])))
    torch.testing.assert_close(mixed[1], -plain[1])


@each
def test_every_evaluation_is_needed(tiny: str, name: str) -> None:
    """S in the rollout; K with a gradient; for Adjoint Matching a product at every state; one decoder per point."""
    one, images, steps = one_of(tiny, name), 8, 4
    one.step()
    one.policy.evaluated = one.policy.trained = decoded = 0
    original = one.policy.pullback

    def counted(x0: Tensor, back: Any) -> Any:
        nonlocal decoded
        decoded += len(x0)
        return original(x0, back)

    one.policy.pullback = counted  # type: ignore[method-assign]
    one.step()
    expected = {"draft": 1, "refl": 1, "srpo": 2, "adjoint_matching": 2 * steps}[name]
    assert one.policy.trained == expected * images
    assert one.policy.evaluated == (steps + expected) * images
    assert decoded == images * (2 if name == "srpo" else 1)


def test_memoryless_samples_keep_the_right_amount_of_noise() -> None:
    """Under the exact velocity of N(0, 1), samples are N(0, 1), and do not depend on the noise they start from."""
    trail = Trail(steps=160, noise="memoryless", kept=None)

    def velocity(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        share = t.view(-1, 1)
        return (2 * share - 1) / ((1 - share) ** 2 + share**2) * x

    noise = Noise((64,), tuple(("memoryless", 0, number) for number in range(100)))
    drawn = trail(velocity, None, noise)  # type: ignore[arg-type]
    start = drawn.states[:, 0]  # type: ignore[index]
    assert drawn.states.shape == (100, 160, 64)  # type: ignore[union-attr]
    assert drawn.x0.std().item() == pytest.approx(1, abs=0.03)
    assert (start * drawn.x0).mean().item() == pytest.approx(0, abs=0.03)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: DRaFT(rollout=Trail(noise="memoryless")), "the steps that are run again follow the ODE"),
        (lambda: AdjointMatching(rollout=Trail()), "needs memoryless noise, with which alone"),
        (lambda: AdjointMatching(ceiling=0.5), "a ceiling would change what Adjoint Matching converges to"),
        (lambda: AdjointMatching(temperature=0.0), "temperature must be a positive number"),
        (lambda: Trail(kept=11), "must lie between 1 and 10 steps, not 11"),
        (lambda: Trail(noise="sde"), "unknown kind of steps 'sde'"),  # type: ignore[arg-type]
        (lambda: SmallSteps(step=0.3), "small steps need 0 < step <= low"),
        (lambda: SRPO(contrast_up=-1.0), "contrast_up must not be negative"),
        (lambda: SRPO(contrast_up=0.1, good="", bad=""), "a contrast needs two different texts"),
        (lambda: ReFL(ceiling=float("nan")), "ceiling must be a finite number"),
    ],
)
def test_bad_settings_are_refused(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


@differentiable
def detached(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.detach().mean((1, 2, 3))


@differentiable
def rootless(images: Tensor, texts: Sequence[str], metadata: Any = None) -> Tensor:
    return (images - images.detach()).square().mean((1, 2, 3)).sqrt()


def test_a_reward_without_a_usable_gradient_is_found_before_the_run(tiny: str, tmp_path: Path) -> None:
    """And a term of weight 0 needs none."""
    policy, texts = models.load(tiny, None, "float32"), prompts.of("mine", TEXTS)
    for reward, said in ((detached, "raised ValueError: its scores have no graph"), (rootless, "slopes that are NaN")):
        run = small(output=tmp_path / "run")
        with pytest.raises(ValueError, match=f"gradient of reward '{reward.__name__}' .*{said}"):
            next(train(few_steps("draft"), policy, reward, texts, run))
        assert not (tmp_path / "run").exists()
    unused = Sum((("bright", 1.0, bright), ("scenes", 0.0, rewards.load("scenes"))))
    refuse_without(unused, "DRaFT")
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(gradient(unused, x, ["a", "b"])[1], gradient(bright, x, ["a", "b"])[1])


@pytest.mark.parametrize("words", [{}, {"good": ""}, {"bad": ""}])
def test_the_words_of_a_contrast_may_be_none(words: dict[str, str]) -> None:
    """A contrast with the bare prompt; rows without a contrast keep the plain score."""
    up = torch.tensor([True, False])
    weights = SRPO(contrast_up=0.3, **words).wording(up)
    assert torch.stack(list(weights.values())).sum(0).tolist() == pytest.approx([0.3, 1.0])
    assert sorted(own[0].item() for own in weights.values() if own[0]) == pytest.approx([-1.0, 1.3])


def test_above_the_ceiling_a_sample_has_no_gradient_whichever_way_its_step_goes(tiny: str) -> None:
    for ceiling, moved in ((-1e3, False), (1e3, True)):
        one = trainer(tiny, replace(few_steps("srpo"), ceiling=ceiling), microbatch=8, learning_rate=1e-2, warmup=0)
        before = snapshot(one.policy)
        metrics = one.step().metrics
        assert metrics["above_ceiling"] == float(not moved) and equal(before, snapshot(one.policy)) != moved


@pytest.mark.parametrize("points", [LastSteps(), LateStep(), WholeTrajectories()])
def test_a_process_without_samples_has_no_points_of_its_own(points: Any) -> None:
    """It has no states either; samples from files, which have none, are refused."""
    group, nothing = torch.zeros(4, dtype=torch.long), torch.zeros(4)
    levels = torch.linspace(1, 0.2, 5)
    given = Condition({"id": torch.zeros(1)}), group, group, nothing, nothing.double(), levels
    idle = Rollout(torch.zeros(0, 2), *given, here=torch.zeros(0, dtype=torch.long))
    found = points(idle, ("points", 0, 0))
    assert len(found) and not len(found.here(torch.arange(len(found))))
    with pytest.raises(ValueError, match="images from files have none"):
        points(Rollout(torch.zeros(4, 2), *given), ("points", 0, 0))


def test_what_cannot_be_differentiated_is_refused(tiny: str) -> None:
    """A reward without a gradient, a mix, words that the reward cannot read, too few states: a sentence each."""

    def plain(images: Tensor, texts: Sequence[str]) -> Tensor:
        return images.mean((1, 2, 3))

    with pytest.raises(ValueError, match="DRaFT needs the gradient of the reward, and reward 'plain' has none"):
        trainer(tiny, few_steps("draft"), reward=plain)
    with pytest.raises(ValueError, match="reward 'scenes' has none"):
        mixed = Sum((("bright", 1.0, bright), ("scenes", 1.0, rewards.load("scenes"))))
        trainer(tiny, few_steps("srpo"), reward=mixed)
    with pytest.raises(ValueError, match="leave out --mix, --palette, --reward-buffer and"):
        trainer(tiny, few_steps("refl"), mix="pareto")
    with pytest.raises(ValueError, match=r"the contrast puts 'Realistic\.' before prompts, which needs a reward that"):
        trainer(tiny, few_steps("srpo", contrast_down=0.1), reward=rewards.load("scenes-net"))
    with pytest.raises(ValueError, match="whole trajectories have 4 states, but only 2 were recorded"):
        how = few_steps("adjoint_matching")
        trainer(tiny, replace(how, rollout=replace(how.rollout, kept=2)))


@each
def test_guards_are_on_by_default(name: str) -> None:
    for preset in ("scenes", "pickscore"):
        settings = config.settings_type(name, preset)()
        assert settings.run.stop_when_hacked
        assert settings.evaluation.guard and settings.evaluation.rewards[0] == settings.reward[0]
        assert settings.evaluation.guard[0] in settings.evaluation.rewards


@pytest.mark.parametrize("stop", [True, False])
def test_a_run_ends_when_its_guard_trips(tiny: str, tmp_path: Path, stop: bool) -> None:
    """Darkness is the guard of brightness, so it must fall; without the option the run only warns."""
    policy, texts = models.load(tiny, precision="float32"), prompts.of("mine", TEXTS)
    run = small(
        iterations=4, learning_rate=1e-2, warmup=0, evaluate_every=1, stop_when_hacked=stop, output=tmp_path / "run"
    )
    dark = differentiable(lambda images, said: -images.mean((1, 2, 3)))
    how = Evaluation(rewards=("bright", "dark"), guard=("dark",), images=40, sampler=few_steps("srpo").rollout)
    evaluator = Evaluator(policy, how, texts, rewards={"bright": bright, "dark": dark})
    from flowward.training.folder import RunFolder

    one = Trainer(few_steps("draft"), policy, bright, texts, run)
    folder = RunFolder.create(run.output, {}) if run.output else None
    steps = list(one.steps(evaluator, folder))
    told = [line for step in steps for line in step.health if "exploit the reward" in line]
    assert told
    assert (len(steps) < 5) == stop
    if stop:
        assert "--resume with --no-stop-when-hacked" in steps[-1].health[-1]
        assert folder is not None and folder.checkpoints()[-1].stem.endswith(str(steps[-1].index))
