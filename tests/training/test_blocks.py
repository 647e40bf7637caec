"""`--compile-blocks auto`: compiled where a long run is faster with it, decided once and written down."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tiny_policies import SMALL, policy
from tiny_runs import trainer as scenes_trainer

from flowward import prompts
from flowward.algorithms import AdvantageFlow
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.learning.points import Renoise
from flowward.models import compiling
from flowward.process.rollout import Sampler
from flowward.rewards.images.jpeg import Compressible
from flowward.training import blocks, config
from flowward.training.assembly import Assembly
from flowward.training.run import Run
from flowward.training.trainer import Trainer

TEXTS = prompts.of("mine", ["a red cat", "dog", "a"])


def ready(iterations: int, trainer: Any = None, **loading: Any) -> Assembly:
    """A run of tiny Stable Diffusion 3: 4 images of 3 steps an iteration, and an evaluation of 3 images."""
    run = Run(iterations=iterations, images_per_update=4, group_size=2, microbatch=4, rollout_batch=4)
    how = AdvantageFlow(rollout=Sampler(3, grid="model"), points=Renoise(1))
    one = trainer or Trainer(how, policy("StableDiffusion3Pipeline"), Compressible(), TEXTS, run)
    evaluator: Any = Evaluator(one.policy, Evaluation(images=3), TEXTS, rewards={"jpeg": Compressible()})
    settings = config.Settings(run=run, algorithm=how, loading=replace(SMALL, **loading))
    return Assembly(settings, one, evaluator, (), (), {})


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the passes that are timed, the next one first; a compiler that compiles nothing."""
    left = list[float]()
    monkeypatch.setattr(blocks, "_seconds", lambda trainer: left.pop(0))
    monkeypatch.setattr(compiling, "uncompilable", lambda device: None)
    monkeypatch.setattr(
        compiling,
        "compile_all",
        partial(compiling.compile_all, blocks=partial(compiling.compile_blocks, backend="eager")),
    )
    return left


def compiled(made: Assembly) -> bool:
    return made.trainer.policy.family.network.transformer_blocks[0]._compiled_call_impl is not None  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("iterations", "seconds", "chosen", "says"),
    [
        (3, [], False, ""),  # too few evaluations to look at all
        (100, [0.1], False, ""),  # 100 x 32 evaluations of 0.1 s: a tenth of 5 minutes
        (1000, [0.1, 0.08], True, "takes 0.80 of the time, which saves about 11 min of 55 min in all"),
        (1000, [0.1, 0.099], False, "are not faster here (0.99 of the time): not used"),
    ],
)
def test_long_runs_that_are_faster_with_it_compile(
    passes: list[float], iterations: int, seconds: list[float], chosen: bool, says: str
) -> None:
    passes += seconds
    made = blocks.decided(ready(iterations))
    assert passes == [] and compiled(made) == chosen
    assert made.settings.loading.compile_blocks == ("always" if chosen else "never")
    assert made.described["loading"]["compile_blocks"] == made.settings.loading.compile_blocks
    assert len(made.notes) == bool(says) and says in " ".join(made.notes)


def test_a_block_that_torch_cannot_compile_runs_as_it_is(passes: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(trainer: Trainer) -> float:
        if compiled(ready_one):
            raise RuntimeError("no kernel")
        return 0.1

    ready_one = ready(1000)
    monkeypatch.setattr(blocks, "_seconds", fails)
    made = blocks.decided(ready_one)
    assert not compiled(made) and made.settings.loading.compile_blocks == "never"
    assert "torch cannot compile the blocks" in made.notes[0] and "no kernel" in made.notes[0]


def test_without_a_compiler_a_long_run_says_what_it_would_save(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_seconds", lambda trainer: 0.1)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    made = blocks.decided(ready(1000))
    assert not compiled(made) and made.settings.loading.compile_blocks == "never"
    assert "may save about 6 min of 55 min, but torch needs a C++ compiler" in made.notes[0]


@pytest.mark.parametrize("given", ["never", "always", "graphs"])
def test_what_the_settings_say_stands(passes: list[float], given: str) -> None:
    made = ready(1000, compile_blocks=given)
    assert blocks.decided(made) is made


def test_the_built_in_model_is_not_asked(passes: list[float], tiny: str) -> None:
    made = ready(1000, scenes_trainer(tiny))
    assert blocks.decided(made) is made


def test_one_pass_is_timed() -> None:
    made = ready(3)
    before = made.trainer.policy.evaluated
    assert 0 < blocks._seconds(made.trainer) < 60 and made.trainer.policy.evaluated == before
