"""Help pages: short ones of what matters, whole ones of everything that is accepted, in plain words."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tyro

from flowward.agent.config import Settings
from flowward.algorithms import ALGORITHMS
from flowward.cli import main
from flowward.commands import (
    advise,
    agent,
    bench,
    compare,
    export,
    front,
    memory,
    module,
    report,
    sample,
    serve_reward,
    study,
    train,
    verify,
    watch,
)
from flowward.commands import eval as evaluation
from flowward.commands import every as every_command
from flowward.commands.agent import eval as agent_eval
from flowward.commands.agent import export as agent_export
from flowward.commands.agent import pretrain as agent_pretrain
from flowward.commands.agent import prompts as agent_prompts
from flowward.commands.agent import solve as agent_solve
from flowward.commands.agent import train as agent_train
from flowward.commands.help import Page, options_of, show
from flowward.commands.options import PLAIN, every, parse, take
from flowward.scenes.recipe import Distil, Pretrain
from flowward.training import config

KINDS: dict[str, tuple[Any, Any]] = {
    **{f"train {name}": (config.settings_type(name), config.settings_type(name)()) for name in ALGORITHMS},
    "train branching": (
        config.settings_type("flow_grpo_fast", "branching"),
        config.settings_type("flow_grpo_fast", "branching")(),
    ),
    "eval": (evaluation.Evaluate, evaluation.Evaluate()),
    "sample": (sample.Sample, None),
    "front": (front.Front, None),
    "export": (export.Export, None),
    "verify": (verify.Verify, None),
    "bench": (bench.Bench, None),
    "report": (report.Report, None),
    "watch": (watch.Watch, None),
    "study": (study.StudyOptions, None),
    "compare": (compare.Compare, None),
    "advise": (advise.Advise, None),
    "serve-reward": (serve_reward.ServeReward, None),
    "pretrain": (Pretrain, None),
    "pretrain scenes-4step": (Distil, None),
    "agent train": (Settings, Settings()),
    "agent solve": (agent_solve.Solve, None),
    "agent eval": (agent_eval.Eval, None),
    "agent export": (agent_export.Export, None),
    "agent prompts": (agent_prompts.Prompts, None),
    "agent pretrain": (agent_pretrain.Pretrain, None),
}
PAGES: dict[str, Page] = {name: module(name).PAGE for name in every_command()}


def helped(capsys: pytest.CaptureFixture[str], words: str, width: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as end:
        main(shlex.split(words))
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", KINDS)
def test_every_option_that_is_accepted_is_on_the_whole_page(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As tyro itself lists them: none is missing, and none is there that it would refuse."""
    monkeypatch.setenv("COLUMNS", "80")  # tyro breaks names in a narrow terminal, and has two columns in a wide one
    kind, default = KINDS[name]
    with pytest.raises(SystemExit):
        tyro.cli(kind, args=["--help"], config=PLAIN, **({} if default is None else {"default": default}))
    accepted = set(re.findall(r"^[│ ] +(--\w[\w.-]*)", capsys.readouterr().out, re.MULTILINE))
    ours = options_of(kind, default)
    assert {f"--{each.name}" for each in ours if not each.positional} == accepted
    page = show(Page(), name, ours, full=True)
    assert all(each.left in page for each in ours)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_names_only_options_that_there_are(name: str) -> None:
    page = PAGES[name]
    key = {"train": "train advantageflow", "memory": "train advantageflow"}.get(name, name)
    if key in KINDS:
        known = {each.name for each in (*page.beside, *options_of(*KINDS[key]))}
        assert set(page.first) <= known
        assert len(page.first) <= 20


WORDS: dict[str, Callable[[list[str]], Any]] = {
    "train": lambda words: train.chosen(every(take(words, "processes")[1], "hook")[1]),
    "memory": lambda words: train.chosen([*take(words, "processes")[1], "--reward", "jpeg-compressibility"], "memory"),
    "eval": lambda words: parse(evaluation.Evaluate, take(words, "suite")[1], "eval"),
    "sample": lambda words: parse(sample.Sample, words, "sample"),
    "front": lambda words: parse(front.Front, words, "front"),
    "export": lambda words: parse(export.Export, words, "export"),
    "verify": lambda words: parse(verify.Verify, words, "verify"),
    "serve-reward": lambda words: parse(serve_reward.ServeReward, words, "serve-reward"),
    "watch": lambda words: parse(watch.Watch, words, "watch"),
    "study": lambda words: parse(study.StudyOptions, words, "study"),
    "compare": lambda words: parse(compare.Compare, words, "compare"),
    "advise": lambda words: parse(advise.Advise, words, "advise"),
    "agent train": agent_train.chosen,
    **{
        name: lambda words, name=name: parse(KINDS[name][0], words, name)
        for name in every_command()
        if name.startswith("agent ") and name != "agent train"
    },
}


FIRST_STEPS = [words.removeprefix("flowward ") for words, _ in agent.EXAMPLES]


@pytest.mark.parametrize("words", [words for page in PAGES.values() for words, _ in page.examples] + FIRST_STEPS)
def test_every_example_can_be_typed(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "recipes").symlink_to(Path(__file__).parents[2] / "recipes")
    monkeypatch.chdir(tmp_path)
    command, *others = shlex.split(words)
    if command == "agent":
        command, others = f"{command} {others[0]}", others[1:]
    assert command in every_command()
    if command in WORDS and "--resume" not in others:
        WORDS[command](others)


def test_the_page_of_train_is_short_and_its_whole_page_is_grouped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = helped(capsys, "train --help", 100, monkeypatch)
    whole = helped(capsys, "train --help-all --algorithm flow_grpo", 100, monkeypatch)
    assert len(re.findall(r"^  --", short, re.MULTILINE)) == len(train.PAGE.first)
    assert len(short.splitlines()) < 60
    assert "--algorithm.beta" in whole and "--algorithm.gamma" not in whole
    for title in ("Training loop", "Evaluation: how images are sampled", "Algorithm: window of random steps"):
        assert f"\n{title}\n" in whole
    assert helped(capsys, "train -h", 100, monkeypatch) == short


def test_the_page_of_memory_has_what_matters_to_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = helped(capsys, "memory --help", 100, monkeypatch)
    assert "--gradient-checkpointing" in page and "--quantise" in page
    assert not any(f"  --{name} " in page for name in ("reward", "learning-rate", "seed", "output", "resume"))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize(
    "words",
    [
        *("train --help", "train --help-all", "sample --help", "eval --help-all"),
        *("agent train --help", "agent train --help-all", "agent eval --help-all", "agent prompts --help"),
    ],
)
def test_a_page_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], words: str, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for names of options, which are never broken."""
    for line in helped(capsys, words, width, monkeypatch).splitlines():
        assert len(line) <= width or re.fullmatch(r" +--\S+( [^ ]+)*( \\)?", line), line


def test_the_pages_of_agents_are_short_and_in_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    short = helped(capsys, "agent train --help", 100, monkeypatch)
    whole = helped(capsys, "agent train --help-all", 100, monkeypatch)
    assert len(short.splitlines()) < 70
    assert "None" not in whole and "False" not in whole and "True" not in whole and "images" not in whole
    for title in ("Agent, questions and rewards", "Limits of an episode", "Training loop", "Evaluation"):
        assert f"\n{title}\n" in whole
    for name in KINDS:
        if name.startswith("agent "):
            for each in options_of(*KINDS[name]):
                own = each.text.partition(" (default")[0]
                assert own, (name, each.name)


def test_defaults_and_kinds_in_words(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    page = " ".join(helped(capsys, "train --help-all", 100, monkeypatch).split())
    assert "None" not in page and "{" not in page and "False" not in page and "True" not in page
    assert "--size HEIGHT WIDTH" in page and "--precision auto|bf16|float32" in page
    assert "groups that have some (default: 1/6)" in page
    assert "--learning-rate NUMBER" in page and "(default: 0.0005)" in page
    assert "--algorithm.[no-]denominator" in page and "(default: on)" in page
    assert "--vae-tiling decode" in page


def test_none_is_none_on_the_command_line() -> None:
    """As the page calls it; where `none` is a value of its own it stays one."""
    settings, _ = train.chosen(shlex.split("--algorithm advantageflow --lora-rank none --memory=none"))
    assert settings.lora_rank is None and settings.run.memory is None
    settings, _ = train.chosen(shlex.split("--algorithm flowawr --preset geneval --algorithm.credit.gate none"))
    assert settings.algorithm.credit.gate == "none"
    assert settings.lora_rank == 32
    settings, _ = train.chosen(shlex.split("--algorithm flowawr --preset geneval --lora-rank None"))
    assert settings.lora_rank is None


def test_every_field_of_our_own_is_explained() -> None:
    """The settings that every training has; verb or noun first, and short."""
    for each in options_of(*KINDS["train advantageflow"]):
        if not each.group.startswith(("algorithm", "run", "evaluation.sampler")):
            said = each.text.partition(" (default")[0]
            assert said, each.name
            assert len(said.split()) <= 20, each.name


def test_memory_is_asked_with_the_words_of_train() -> None:
    assert memory.PAGE.beside == (*train.START, memory.PROCESSES)
