"""Every key of metrics.jsonl is explained, every explained key is written, and docs/metrics.md repeats the glossary."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TEXTS, bright, few_steps, small
from torch import Tensor

from flowward import ALGORITHMS, models, prompts
from flowward.algorithms.policy_gradient import PolicyGradient
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.process.rollout import Pairs, Sampler
from flowward.rewards import Sum
from flowward.rewards.images.scenes import Balance
from flowward.training import glossary
from flowward.training.folder import RunFolder
from flowward.training.metrics import SHOWN
from flowward.training.trainer import Trainer

ON_CUDA = {"speed.mfu", "speed.gpu_memory"}
OF_SEVERAL = {"seconds.slowest", "seconds.fastest"}  # processes: see test_local_samples.py
DOCS = Path(__file__).parents[2] / "docs"


class Dark:
    missing = 0

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return 1 - images.amin((1, 2, 3))


SEVERAL = Sum((("bright", 1.0, bright), ("dark", 0.5, Dark())))


def line(tiny: str, name: str, folder: Path) -> dict[str, Any]:
    """That of one iteration with two updates, two rewards, an evaluation and all that can be switched on."""
    algorithm = few_steps(name, **({"beta": 0.1} if issubclass(ALGORITHMS[name], PolicyGradient) else {}))
    policy, texts = models.load(tiny, None, "float32"), prompts.of("mine", TEXTS)
    grouped = name in ("dgpo", "crd", "dpo") or getattr(algorithm.rollout, "leaves", 1) > 1
    run = small(
        iterations=1,
        group_size=2 if isinstance(algorithm.rollout, Pairs) else 4,
        updates_per_iteration=2,
        curriculum=1,
        skip_nonfinite=1,
        reward_buffer=0 if grouped else 8,
    )
    measures = {"balance": Balance()}  # has bounds
    evaluator = Evaluator(policy, Evaluation(images=4, sampler=Sampler(2)), texts, 2, measures)
    written = RunFolder.create(folder, {})
    list(Trainer(algorithm, policy, SEVERAL, texts, run).steps(evaluator, written))
    return written.lines()[-1]


def keys(line: dict[str, Any]) -> Iterator[str]:
    """As the glossary names them."""
    for key, value in line.items():
        if key in ("seconds", "speed", *SHOWN):
            yield from (f"{key}.{part}" for part in value)
        elif key == "evaluation":
            yield from ("evaluation.SETTING" for setting in value if setting != "scores")
            for own in value["scores"].values():
                yield from (f"evaluation.scores.NAME.{each}" for each in own.keys() - {"overall", "categories"})
                for part in (own["overall"], *own["categories"].values()):
                    yield from (f"evaluation.scores.NAME.PART.{each}" for each in part)
        else:
            yield key


@pytest.fixture(scope="module")
def written(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All keys that runs of all algorithms write."""
    where = tmp_path_factory.mktemp("glossary")
    return {key for name in ALGORITHMS for key in keys(line(tiny, name, where / name))}


def test_every_key_is_explained(written: set[str]) -> None:
    assert not [key for key in sorted(written) if glossary.entry(key) is None]


def test_every_explained_key_is_written(written: set[str]) -> None:
    explained = set(glossary.METRICS) - ON_CUDA - OF_SEVERAL | {
        f"{key}@STEP" for key, each in glossary.METRICS.items() if each.by_step
    }
    assert explained == {glossary.entry(key) for key in written}


@pytest.mark.parametrize("key", ["mine", "pull@", "pull@x", "loss@1", "reward/", "other/name", "reward@1"])
def test_other_keys_are_not_explained(key: str) -> None:
    assert glossary.entry(key) is None and glossary.find(key) is None


def test_patterns() -> None:
    assert glossary.find("pull@3") is glossary.METRICS["pull"]
    assert glossary.find("reward/my/own.py:red") is glossary.METRICS["reward/NAME"]
    assert glossary.find("correlation/ocr/aesthetic") is glossary.METRICS["correlation/NAME/NAME"]


def test_each_explanation_is_one_short_sentence() -> None:
    for key, each in glossary.METRICS.items():
        for text in (each.line, each.healthy):
            assert text and not text.endswith(".") and len(text.split()) <= 25, key


def test_the_page_is_that_of_the_glossary() -> None:
    """Write it anew with `python -m flowward.training.glossary > docs/metrics.md`."""
    assert (DOCS / "metrics.md").read_text("utf-8") == glossary.page()
