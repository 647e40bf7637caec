"""Runs of several rewards: a gradient per reward, and a palette at drawn weights."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, equal, few_steps, plain, small, snapshot
from torch import Tensor

from flowward import models, prompts
from flowward.export import trained
from flowward.learning.mixtures import Drawn
from flowward.learning.moves import RandomSteps
from flowward.learning.objectives import Apart, common_descent
from flowward.models import Adapters
from flowward.process.policy import MIXTURE, Condition
from flowward.rewards import Reward, Sum
from flowward.training import config
from flowward.training.assembly import Parts, train
from flowward.training.folder import RunFolder
from flowward.training.trainer import Trainer


def coloured(images: Tensor, texts: Any, metadata: Any = None) -> Tensor:
    return images.std((1, 2, 3))


def both(first: float = 1.0, second: float = 0.5) -> Sum:
    return Sum((("bright", first, bright), ("coloured", second, coloured)))


def of(tiny: str, reward: Reward, palette: tuple[str, ...] = (), **changes: Any) -> Trainer:
    adapters = Adapters(2, palette=palette) if palette else None
    policy = models.load(tiny, None, "float32", adapters=adapters)
    return Trainer(algorithm(), policy, reward, prompts.of("mine", TEXTS), small(**changes))


NAMES = ("bright", "coloured")


class Corner(Drawn):
    """All groups have the second reward alone."""

    def told(self, condition: Condition, iteration: int) -> Condition:
        return replace(condition, tensors={**condition.tensors, MIXTURE: torch.tensor([[0.0, 1.0]] * len(condition))})


def gradient(one: Trainer) -> Tensor:
    return torch.cat([each.grad.flatten() for each in one.parameters if each.grad is not None]).clone()


def test_the_step_is_the_shortest_point_between_the_gradients_of_each_reward(tiny: str) -> None:
    """The gradient of `--mix descent` from those of two runs with one reward each; T57 holds for it."""
    found = {}
    for name, reward, mix in (("one", both(1, 0), "advantages"), ("two", both(0, 1), "advantages"),
                              ("all", both(), "descent")):  # fmt: skip
        one = plain(of(tiny, reward, mix=mix, gradient_clip=1e9))
        kept = []
        one.update = lambda number, one=one, kept=kept: kept.append(gradient(one)) or 1.0  # type: ignore
        metrics = one.step().metrics
        found[name] = kept[0]
    gradients = torch.stack([found["one"], found["two"]]).double()
    alpha = common_descent(gradients @ gradients.T)
    torch.testing.assert_close(found["all"].double(), alpha @ gradients, atol=1e-7, rtol=1e-4)
    assert [metrics["alpha/bright"], metrics["alpha/coloured"]] == pytest.approx(alpha.tolist(), abs=1e-4)
    cosine = torch.nn.functional.cosine_similarity(*gradients, dim=0).item()
    assert metrics["cosine/bright/coloured"] == pytest.approx(cosine, abs=1e-4)
    products = gradients @ found["all"].double()
    assert (products >= -1e-9).all() and alpha.min() > 0


def test_each_reward_of_descent_costs_a_pass(tiny: str) -> None:
    """The network evaluations of training, and what `--dry-run` counts them with."""
    counted = []
    for mix in ("rewards", "descent"):
        one = of(tiny, both(), mix=mix)
        one.step()
        counted.append(one.policy.trained / one.gradients)
    assert one.gradients == 2 and counted[0] == counted[1] == 8
    assert of(tiny, both(1, 0), mix="descent").gradients == 1


def test_rewards_that_stay_apart_have_the_same_points(tiny: str) -> None:
    one = of(tiny, both(), mix="descent")
    rollout, images = one.sample(list(TEXTS[:2]), 0)
    scores = torch.stack([bright(images, TEXTS), coloured(images, TEXTS)], 1)
    points = one._points(one.credit(rollout, scores, list(TEXTS[:2])), ("points", 0, 0))
    assert isinstance(points, Apart) and tuple(points.sets) == NAMES
    first, second = (each.take(torch.arange(8)) for each in points.sets.values())
    assert torch.equal(first.x_t, second.x_t) and torch.equal(first.t, second.t)
    assert not torch.equal(first.advantage, second.advantage)
    silent = one._points(one.credit(rollout, scores * torch.tensor([1.0, 0.0]), list(TEXTS[:2])), ("points", 0, 0))
    assert isinstance(silent, Apart) and tuple(silent.sets) == ("bright",)
    assert one._points(one.credit(rollout, scores * 0, list(TEXTS[:2])), ("points", 0, 0)) is None


def test_one_reward_that_stays_apart_is_a_run_of_it(tiny: str) -> None:
    alone, apart = of(tiny, bright), of(tiny, bright, mix="descent")
    for one in (alone, apart):
        one.step()
        one.step()
    assert equal(snapshot(alone.policy), snapshot(apart.policy))


@pytest.mark.parametrize("points", [RandomSteps(counted="signal"), RandomSteps(extremes=2)])
def test_rewards_that_choose_their_own_steps_cannot_stay_apart(tiny: str, points: RandomSteps) -> None:
    texts, run = prompts.of("mine", TEXTS), small(mix="descent")
    how = replace(few_steps("flow_grpo"), points=points)
    with pytest.raises(
        ValueError, match=r"^--mix descent needs the same steps for every reward: set --algorithm.points"
    ):
        Trainer(how, models.load(tiny, None, "float32"), both(), texts, run)


def test_a_gamma_of_its_own_is_that_of_the_advantages_of_each_reward(tiny: str) -> None:
    """Of two rewards that disagree the mean advantage is near 0; every point of each has a minimum."""
    against = Sum((("bright", 1.0, bright), ("dark", 1.0, lambda *given: 0.3 * coloured(*given) - bright(*given))))
    how, policy = algorithm(gamma="auto"), models.load(tiny, None, "float32")
    run = small(mix="descent", images_per_update=16, group_size=8, microbatch=16)
    one = Trainer(how, policy, against, prompts.of("mine", TEXTS), run)
    assert all(one.step().metrics["curvature_min"] > 0 for _ in range(2))


def test_images_of_a_group_share_the_weights_that_the_network_is_told(tiny: str) -> None:
    """A_w = sum_k w_k weight_k A_k, and w reaches the samples, the anchors and the training points."""
    one = of(tiny, both(), NAMES, mix="advantages")
    rollout, images = one.sample(list(TEXTS[:2]), 0)
    w = rollout.condition.tensors[MIXTURE]
    assert w.shape == (2, 2) and torch.equal(one.sample(list(TEXTS[:2]), 0)[0].condition.tensors[MIXTURE], w)
    scores = torch.stack([bright(images, TEXTS), coloured(images, TEXTS)], 1)
    found = one.credit(rollout, scores, list(TEXTS[:2])).advantage
    each = [one.algorithm.credit(scores[:, k], rollout.cohort) for k in range(2)]
    expected = w[rollout.group, 0] * each[0] + w[rollout.group, 1] * 0.5 * each[1]
    torch.testing.assert_close(found, expected.double())
    points = one.algorithm.points(replace(rollout, advantage=found), ("points", 0, 0)).take(torch.arange(8))
    assert torch.equal(points.condition.tensors[MIXTURE], w[rollout.group])


def test_a_group_at_a_corner_trains_its_adapter_alone(tiny: str) -> None:
    """T56 through the trainer, with an anchor and several microbatches."""
    one = plain(of(tiny, both(), NAMES, mix="advantages", microbatch=4))
    one.weighting = Corner(one.weighting.weights, 0)  # type: ignore[attr-defined]
    before = snapshot(one.policy)
    one.step()
    moved = torch.zeros(2)
    for key, tensor in snapshot(one.policy).items():
        for k, part in enumerate((tensor - before[key]).chunk(2, 0 if ".lora_A" in key else 1)):
            moved[k] += part.abs().sum()
    assert moved[0] == 0 and moved[1] > 0


def test_resuming_a_palette_is_exact(tiny: str) -> None:
    """Two iterations are one and one more. A palette of other names is another model."""
    whole = of(tiny, both(), NAMES, mix="advantages")
    whole.step()
    kept = deepcopy(whole.state_dict())
    again = of(tiny, both(), NAMES, mix="advantages")
    again.load_state_dict(kept)
    whole.step()
    again.step()
    assert equal(snapshot(whole.policy), snapshot(again.policy))
    with pytest.raises(ValueError, match="another model"):
        of(tiny, Sum((("a", 1.0, bright), ("b", 1.0, coloured))), ("a", "b"), mix="advantages").load_state_dict(kept)


@pytest.mark.parametrize(
    ("reward", "changes", "said"),
    [
        (bright, {}, "adapters for bright, coloured, but the rewards are bright: train with the rewards"),
        (both(), {"mix": "rewards"}, "set --mix advantages, not rewards"),
        (both(1, 0), {}, "but the rewards are bright"),
    ],
)
def test_a_palette_refuses_other_rewards_and_mixes(tiny: str, reward: Any, changes: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        of(tiny, reward, NAMES, **{"mix": "advantages", **changes})


def settings(**changes: Any) -> Any:
    given = {"palette": True, "lora_rank": 2, "reward": ["scenes-strict", "balance"], "run": {"mix": "advantages"}}
    return config.from_dict({**given, **changes})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"lora_rank": None}, "made of LoRA adapters: set lora_rank"),
        ({"reward": ["scenes"]}, "two or more of weight other than 0"),
        ({"reward": ["scenes", "balance=0"]}, "two or more of weight other than 0"),
        ({"init_lora": "some.safetensors"}, "leave out --init-lora or --palette"),
        ({"lora_rank": 4096}, "have rank 8192 together"),
        ({"reward": [f"r.py:r{k}" for k in range(9)]}, "2 to 8 of them, not 9"),
    ],
)
def test_impossible_settings(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        _ = settings(**changes).adapters


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drawing": {"rollouts": "ray"}}, "set --rollouts here"),
        ({"preferences": "pairs.jsonl"}, "leave out --preferences or --palette"),
    ],
)
def test_a_palette_draws_its_own_images(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Parts.of(settings(**changes), None, None, None)  # type: ignore[arg-type]


def test_settings_name_the_adapters() -> None:
    assert settings(reward=["scenes-strict=2", "jpeg-compressibility=0", "balance"]).adapters.palette == (
        "scenes-strict",
        "balance",
    )
    assert config.to_dict(settings())["palette"] is True


def test_a_run_folder_gives_its_palette(tiny: str, tmp_path: Path) -> None:
    from flowward import rewards

    policy = models.load(tiny, precision="float32", adapters=Adapters(2, palette=("scenes-soft", "balance")))
    run = small(iterations=1, mix="advantages", output=tmp_path / "run")
    reward = rewards.load(["scenes-soft", "balance"])
    assert len(list(train(algorithm(), policy, reward, prompts.of("mine", TEXTS), run))) == 1
    found: Any = trained.load(tmp_path / "run")
    assert found.weights.palette == ("scenes-soft", "balance") and equal(snapshot(found), snapshot(policy))
    assert RunFolder.open(tmp_path / "run").config()["palette"] is True
