"""Every key of metrics.jsonl is explained, every explained key is written, and docs/metrics.md repeats the glossary."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_agents
import torch
from tiny_flows import GOALS, near, policy
from tiny_runs import REWARDED, TEXTS, bright, few_steps, fitting, small, taught
from torch import Tensor

import flowward
from flowward import ALGORITHMS, models, prompts
from flowward.agent import episode, health
from flowward.agent.rewards import Term
from flowward.algorithms.auto_gamma import AutoGamma
from flowward.algorithms.policy_gradient import PolicyGradient
from flowward.evaluation.evaluate import Evaluation, Evaluator
from flowward.process.rollout import Pairs, Sampler
from flowward.rewards import Smooth, Sum
from flowward.rewards.images.scenes import Balance
from flowward.training import glossary
from flowward.training.folder import RunFolder
from flowward.training.metrics import SHOWN
from flowward.training.trainer import Trainer

ON_CUDA = {"speed.mfu", "speed.gpu_memory"}
OF_SOUND = {"sounds"}  # of runs over models of sound, as in test_sound_models.py
OF_SEVERAL = {"seconds.slowest", "seconds.fastest"}  # processes: see test_local_samples.py
MORE: dict[str, dict[str, Any]] = {
    "advantageflow": {"gamma": "auto", "auto": AutoGamma(budget=1.0)},
    "draft": {"ceiling": 2.0},
}
DOCS = Path(__file__).parents[2] / "docs"


class Dark(Smooth):
    missing, batch = 0, 32

    def __call__(self, images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
        return 1 - images.amin((1, 2, 3))


def coloured(images: Tensor, prompts: Sequence[str], metadata: Any = None) -> Tensor:
    return images.std((1, 2, 3))


SEVERAL = Sum((("bright", 1.0, bright), ("dark", 0.5, Dark())))
VARIED = Sum((("bright", 1.0, bright), ("coloured", 0.5, coloured)))


def line(tiny: str, name: str, folder: Path) -> dict[str, Any]:
    """That of one iteration with two updates, two rewards, an evaluation and all that can be switched on."""
    switched_on = {"beta": 0.1} if issubclass(ALGORITHMS[name], PolicyGradient) else MORE.get(name, {})
    algorithm = few_steps(name, **switched_on)
    policy, texts = models.load(fitting(tiny, algorithm), None, "float32"), prompts.of("mine", TEXTS)
    grouped = name in ("dgpo", "crd", "dpo") or getattr(algorithm.rollout, "leaves", 1) > 1
    run = small(
        iterations=1,
        group_size=2 if isinstance(algorithm.rollout, Pairs) else 4,
        microbatch=7 if name == "branch_grpo" else 8,
        updates_per_iteration=2,
        curriculum=int(name in REWARDED),
        skip_nonfinite=1,
        mix="descent" if name == "awm" else "rewards",
        reward_buffer=0 if grouped or name not in REWARDED else 8,
    )
    measures = {"balance": Balance()}  # has bounds
    evaluator = Evaluator(policy, Evaluation(images=4, sampler=Sampler(2)), texts, 2, measures)
    written = RunFolder.create(folder, {})
    teachers, reward = taught(algorithm, policy, texts), VARIED if name == "awm" else SEVERAL
    list(Trainer(algorithm, policy, reward, texts, run, teachers=teachers).steps(evaluator, written))
    return written.lines()[-1]


class Elsewhere:
    """Samples in this process as if it were a server: the log-probabilities are computed again."""

    elsewhere = True

    def __init__(self, sampler: Any):
        self.sampler = sampler

    def __call__(self, *asked: Any) -> Any:
        return self.sampler(*asked)


def line_of_an_agent(folder: Path) -> dict[str, Any]:
    """The same for episodes, whose planner is sampled elsewhere."""
    trainer = tiny_agents.trainer(iterations=1, curriculum=1, skip_nonfinite=1)
    trainer.terms += [Term("never", 0.5, lambda answers, asked, about: torch.zeros(len(answers)))]
    evaluator = tiny_agents.evaluator(trainer)
    trainer.player = replace(trainer.player, sampler=Elsewhere(trainer.player.sampler))
    written = RunFolder.create(folder, {})
    list(trainer.steps(evaluator, written))
    return written.lines()[-1]


def keys(line: dict[str, Any]) -> Iterator[str]:
    """As the glossary names them."""
    for key, value in line.items():
        if key in ("seconds", "speed", *SHOWN):
            yield from (f"{key}.{part}" for part in value)
        elif key == "evaluation":
            yield from ("evaluation.SETTING" for setting in value if setting not in ("scores", "behaviour"))
            for own in value.get("behaviour", {}).values():
                yield from (f"evaluation.behaviour.HOW.{each}" for each in own)
            for own in value["scores"].values():
                yield from (f"evaluation.scores.NAME.{each}" for each in own.keys() - {"overall", "categories"})
                for part in (own["overall"], *own["categories"].values()):
                    yield from (f"evaluation.scores.NAME.PART.{each}" for each in part)
        else:
            yield key


@pytest.fixture(scope="module")
def written(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """All keys that runs of all algorithms, of a flow without images, and of an agent, write."""
    where = tmp_path_factory.mktemp("glossary")
    lines = [line(tiny, name, where / name) for name in ALGORITHMS]
    lines += [line_of_an_agent(where / "agent"), line_of_samples(where / "samples")]
    return {key for each in lines for key in keys(each)}


def line_of_samples(where: Path) -> dict[str, Any]:
    """The last line of a run whose samples are no images."""
    few: dict[str, Any] = {"iterations": 1, "images_per_update": 8, "microbatch": 8, "group_size": 4}
    flowward.fit(
        "advantageflow", policy(), near, [*GOALS], output=where, evaluation={"images": 8}, progress=False, **few
    )
    found: dict[str, Any] = json.loads((where / "metrics.jsonl").read_text("utf-8").splitlines()[-1])
    return found


def test_every_key_is_explained(written: set[str]) -> None:
    assert not [key for key in sorted(written) if glossary.entry(key) is None]


def test_every_explained_key_is_written(written: set[str]) -> None:
    explained = set(glossary.METRICS) - ON_CUDA - OF_SEVERAL - OF_SOUND | {
        f"{key}@STEP" for key, each in glossary.METRICS.items() if each.by_step
    }
    assert explained == {glossary.entry(key) for key in written}


@pytest.mark.parametrize(
    "key", ["mine", "pull@", "pull@x", "loss@1", "reward/", "other/name", "reward@1", "tool/", "seconds.mine"]
)
def test_other_keys_are_not_explained(key: str) -> None:
    assert glossary.entry(key) is None and glossary.find(key) is None


def test_patterns() -> None:
    assert glossary.find("pull@3") is glossary.METRICS["pull"]
    assert glossary.find("reward/my/own.py:red") is glossary.METRICS["reward/NAME"]
    assert glossary.find("correlation/ocr/aesthetic") is glossary.METRICS["correlation/NAME/NAME"]


def test_keys_of_agents() -> None:
    assert glossary.find("tool/my/own.py:look") is glossary.METRICS["tool/NAME"]
    assert glossary.find("seconds.verifier") is glossary.METRICS["seconds.MODULE"]
    ends, troubles = glossary.METRICS["end/NAME"].line, glossary.METRICS["trouble/NAME"].line
    assert all(end in ends for end in episode.ENDS)
    assert all(trouble in troubles for trouble in episode.TROUBLES)


def test_healthy_values_of_agents_are_those_of_the_warnings() -> None:
    """The warnings lie in a wing above the glossary."""
    for key, limit in {
        "one_turn": f"below {health.ONE_TURN:.0%}",
        "tool/NAME": f"below {health.IDLE:.0%}",
        "answer_tokens": f"below {health.LONGER:g} times",
        "kl": f"above {health.FAR:g},",
        "server_gap_mean": f"below {health.APART:g}",
        "server_gap_ratio": f"within {health.APART_RATIO:g} of 1",
        **dict.fromkeys(("trouble/NAME", "cut", "undecided", "shortened", "dropped"), f"below {health.WRONG:.0%}"),
    }.items():
        assert limit in glossary.METRICS[key].healthy, key


def test_each_explanation_is_one_short_sentence() -> None:
    for key, each in glossary.METRICS.items():
        for text in (each.line, each.healthy):
            assert text and not text.endswith(".") and len(text.split()) <= 25, key


def test_the_page_is_that_of_the_glossary() -> None:
    """Write it anew with `python -m flowward.training.glossary > docs/metrics.md`."""
    assert (DOCS / "metrics.md").read_text("utf-8") == glossary.page()
