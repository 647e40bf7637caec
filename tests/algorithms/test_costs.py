"""The costs of the table of algorithms are those that a trainer counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tiny_runs import TEXTS, bright, fitting, taught

from flowward import models, prompts
from flowward.algorithms.presets import PRESETS, Cost, facts
from flowward.training import batches, config
from flowward.training.bench import Recorder
from flowward.training.trainer import Trainer


def counted(name: str, tiny: str) -> Cost:
    """Network passes per image in the second iteration of two groups: in the first the copies are still the policy."""
    settings = config.settings_type(name)()
    images = 2 * settings.run.group_size
    run = replace(
        settings.run, images_per_update=images, updates_per_iteration=1, rollout_batch=images, reward_buffer=0
    )
    per_update = batches.counted(settings.algorithm, settings.algorithm.rollout, replace(run, memory=1.0)).per_update
    policy = models.load(fitting(tiny, settings.algorithm), precision="float32")
    one = replace(run, microbatch=per_update)
    texts = prompts.of("mine", TEXTS)
    teachers = taught(settings.algorithm, policy, texts)
    trainer = Trainer(settings.algorithm, policy, bright, texts, one, teachers=teachers)
    trainer.step()
    recorder = Recorder(policy)
    trainer.step()
    recorder.restore()
    drawn = max(number for number, call in enumerate(recorder.calls) if call.what == "decode")

    def passes(what: str, low: int, high: int | None) -> float:
        return sum(call.batch for call in recorder.calls[low:high] if call.what == what) / images

    return Cost(passes("forward", 0, drawn), passes("forward+backward", 0, None), passes("forward", drawn, None))


@pytest.mark.parametrize("name", PRESETS)
def test_the_cost_of_an_algorithm_is_what_its_trainer_counts(name: str, tiny: str) -> None:
    found, said = counted(name, tiny), facts(name).cost
    assert (said.sampling, said.training, said.copies) == pytest.approx(
        (found.sampling, found.training, found.copies), abs=0.005
    )
