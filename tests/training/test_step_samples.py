"""A step has the images of its iteration, with what they were scored; who keeps steps does not keep images."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from tiny_runs import TEXTS, algorithm, bright, small, trainer

import flowward
from flowward import models, prompts
from flowward.rewards import Sum
from flowward.training.metrics import Step


def dark(images: torch.Tensor, texts: list[str]) -> torch.Tensor:
    return 1 - bright(images, texts)


def test_a_step_has_its_images_with_their_prompts_and_scores(tiny: str) -> None:
    both = Sum((("bright", 2.0, bright), ("dark", 0.5, dark)))
    one = trainer(tiny, reward=both, updates_per_iteration=2, images_per_update=4, rollout_batch=4)
    for step in one.steps():
        images = step.images
        assert images.shape == (8, 3, *one.policy.image_size) and images.dtype == torch.float32
        assert images.min() >= 0 and images.max() <= 1
        drawn = [TEXTS[i] for i in one.prompts.draw(0, step.index - 1, 2)]
        assert step.prompts == [text for text in drawn for _ in range(4)]
        assert {*step.rewards} == {"bright", "dark"}
        assert torch.equal(step.rewards["bright"], bright(images, step.prompts))
        assert torch.equal(step.rewards["dark"], dark(images, step.prompts))
        assert (2 * step.rewards["bright"] + 0.5 * step.rewards["dark"]).mean().item() == pytest.approx(
            step.metrics["reward"]
        )
        light, shade = step.rewards["bright"].double(), step.rewards["dark"].double()
        own = one.algorithm.credit(2 * light + 0.5 * shade, one._group())
        assert torch.allclose(step.advantages, own, atol=1e-5) and step.advantages.shape == (8,)


def test_steps_that_are_kept_hold_no_images_but_the_last(tiny: str) -> None:
    policy, texts = models.load(tiny, None, "float32"), prompts.of("mine", TEXTS)
    steps, images = list[Step](), list[weakref.ref[torch.Tensor]]()
    for step in flowward.train(algorithm(), policy, bright, texts, small()):
        steps.append(step)
        images.append(weakref.ref(step.images))
    gc.collect()
    assert [each() is not None for each in images] == [False, False, True]
    assert steps[-1].images.shape[0] == 8 and len(steps[0].prompts) == len(steps[0].rewards["bright"]) == 8
    with pytest.raises(ValueError, match=r"let go when the next iteration begins: take step\.images before"):
        _ = steps[0].images


def test_a_step_without_samples_has_none() -> None:
    step = Step(0, {}, [], {})
    assert len(step.images) == len(step.prompts) == len(step.rewards) == len(step.advantages) == 0
    assert step == Step(0, {}, [], {})
