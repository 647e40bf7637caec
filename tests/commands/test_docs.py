"""What the pages tell their reader to type is taken as it stands, and where they point to there is something."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import TEXTS, few_steps

import flowward
from flowward import models, prompts
from flowward.commands import compare, export, sample, serve_reward, train, verify, watch
from flowward.commands import eval as evaluation
from flowward.commands.options import every, parse, take
from flowward.rewards.judges.judge import Judge
from flowward.rewards.service.remote import Remote
from flowward.training.trainer import Trainer

FENCED = re.MULTILINE | re.DOTALL
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "flowward").rglob("*.md"))]
LOOKS = {f"--{each.name}" for each in train.LOOKS}
KINDS: dict[str, Callable[[list[str]], Any]] = {
    "train": lambda words: train.chosen(
        [word for word in every(take(words, "processes")[1], "hook")[1] if word not in LOOKS]
    ),
    "memory": lambda words: train.chosen([*words, "--reward", "jpeg-compressibility"], "memory"),
    "sample": lambda words: parse(sample.Sample, words, "sample"),
    "eval": lambda words: parse(evaluation.Evaluate, take(words, "suite")[1], "eval"),
    "export": lambda words: parse(export.Export, words, "export"),
    "verify": lambda words: parse(verify.Verify, words, "verify"),
    "serve-reward": lambda words: parse(serve_reward.ServeReward, words, "serve-reward"),
    "watch": lambda words: parse(watch.Watch, words, "watch"),
    "compare": lambda words: parse(compare.Compare, words, "compare"),
}


def blocks(*kinds: str) -> list[tuple[str, str]]:
    """(page, text) of the fenced blocks of these kinds."""
    found = [
        (page.name, *block)
        for page in PAGES
        for block in re.findall(r"^```(\w*)\n(.*?)^```", page.read_text("utf-8"), FENCED)
    ]
    return [(name, text) for name, kind, text in found if kind in kinds]


def commands() -> list[list[str]]:
    """The words of every call of flowward; dots stand for more of them."""
    lines = "\n".join(text for _, text in blocks("", "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("flowward ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_on_a_page_has_its_options(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    more = ["--reward", "jpeg-compressibility"] if "..." in words and "--reward" not in words else []
    if words[0] in KINDS and "--resume" not in words:
        KINDS[words[0]]([word for word in words[1:] if word != "..."] + more)


NUMBERS = [ROOT / "docs" / "benchmarks.md", *sorted((ROOT / "docs" / "notes").glob("*.md"))]
MEASURE = re.compile(r"flowward (?:train|bench)(?:[^`\n\\]|\\\n)* --(?:[^`\n\\]|\\\n)*")


@pytest.mark.parametrize("page", NUMBERS, ids=lambda page: page.name)
def test_commands_beside_published_numbers_name_a_precision(page: Path) -> None:
    """Numbers compare in one precision only, and `auto` depends on the machine. Runs and recipes name their own."""
    for command in MEASURE.findall(page.read_text("utf-8")):
        assert re.search("--(precision|config|resume|help)", command), command


@pytest.mark.processor
@pytest.mark.parametrize(("page", "code"), blocks("python"), ids=[page for page, _ in blocks("python")])
def test_every_block_of_python_on_a_page_runs(
    page: str, code: str, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flowward.models.scenes.SHIPPED", Path(tiny))
    monkeypatch.setattr(Remote, "_meet", lambda remote: {})  # nobody is there
    monkeypatch.setattr(Judge, "_meet", lambda judge: "")
    made: list[Trainer] = []
    monkeypatch.setattr(flowward, "train", lambda *parts: made.append(Trainer(*parts)) or [], raising=False)
    monkeypatch.setattr(flowward, "fit", partial(shortened, flowward.fit), raising=False)
    monkeypatch.chdir(tmp_path)
    policy = models.load(tiny)
    given: dict[str, Any] = {"base": policy, "trained": policy, "prompts": prompts.of("mine", TEXTS)}
    if "run." in code and "run = " not in code:
        given["run"] = flowward.fit("advantageflow", policy, "balance", "scenes")
    exec(code.replace("images=600", "images=5"), given)


def shortened(fit: Callable[..., Any], name: str, *parts: Any, **settings: Any) -> Any:
    """One small iteration, of as few steps as possible."""
    few = {"iterations": 1, "images_per_update": 8, "group_size": 4, "microbatch": 8, "evaluation": {"images": 5}}
    return fit(few_steps(name), *parts, **{**settings, **few})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        assert (page.parent / link).exists(), link
