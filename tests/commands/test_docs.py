"""What the pages tell their reader to type is taken as it stands, and where they point to there is something."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import generator
import pytest
from tiny_runs import TEXTS, few_steps

import flowward
from flowward import models, prompts
from flowward.commands import (
    advise,
    algorithms,
    compare,
    export,
    front,
    report,
    sample,
    serve_reward,
    study,
    train,
    verify,
    watch,
)
from flowward.commands import eval as evaluation
from flowward.commands import list as listing
from flowward.commands.agent import eval as agent_eval
from flowward.commands.agent import export as agent_export
from flowward.commands.agent import pretrain as agent_pretrain
from flowward.commands.agent import prompts as agent_prompts
from flowward.commands.agent import solve as agent_solve
from flowward.commands.agent import train as agent_train
from flowward.commands.options import every, parse, take
from flowward.rewards.judges.judge import Judge
from flowward.rewards.service.remote import Remote
from flowward.studies import plan
from flowward.training.trainer import Trainer

FENCED = re.MULTILINE | re.DOTALL
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "flowward").rglob("*.md"))]
MADE = generator.pages()  # by the code, for the site
TEXT = {**{page.relative_to(ROOT).as_posix(): page.read_text("utf-8") for page in PAGES}, **MADE}
LOOKS = {f"--{each.name}" for each in train.LOOKS}
KINDS: dict[str, Callable[[list[str]], Any]] = {
    "train": lambda words: train.chosen(
        [word for word in every(take(words, "processes")[1], "hook")[1] if word not in LOOKS]
    ),
    "memory": lambda words: train.chosen([*take(words, "processes")[1], "--reward", "jpeg-compressibility"], "memory"),
    "sample": lambda words: parse(sample.Sample, words, "sample"),
    "eval": lambda words: parse(evaluation.Evaluate, take(words, "suite")[1], "eval"),
    "front": lambda words: parse(front.Front, words, "front"),
    "export": lambda words: parse(export.Export, words, "export"),
    "verify": lambda words: parse(verify.Verify, words, "verify"),
    "algorithms": lambda words: parse(algorithms.Algorithms, words, "algorithms"),
    "demo": lambda words: train.chosen(words),
    "list": lambda words: parse(listing.List, words, "list"),
    "report": lambda words: parse(report.Report, words, "report"),
    "serve-reward": lambda words: parse(serve_reward.ServeReward, words, "serve-reward"),
    "watch": lambda words: parse(watch.Watch, words, "watch"),
    "study": lambda words: parse(study.StudyOptions, words, "study"),
    "compare": lambda words: parse(compare.Compare, words, "compare"),
    "advise": lambda words: parse(advise.Advise, words, "advise"),
    "agent": lambda words: AGENTS[words[0]](words[1:]),
}
AGENTS: dict[str, Callable[[list[str]], Any]] = {
    "train": lambda words: agent_train.chosen([word for word in take(words, "processes")[1] if word not in LOOKS]),
    "solve": lambda words: parse(agent_solve.Solve, words, "agent solve"),
    "eval": lambda words: parse(agent_eval.Eval, words, "agent eval"),
    "export": lambda words: parse(agent_export.Export, words, "agent export"),
    "prompts": lambda words: parse(agent_prompts.Prompts, words, "agent prompts"),
    "pretrain": lambda words: parse(agent_pretrain.Pretrain, words, "agent pretrain"),
}


def blocks(*kinds: str) -> list[tuple[str, str]]:
    """(page, text) of the fenced blocks of these kinds."""
    found = [
        (page, *block) for page, text in TEXT.items() for block in re.findall(r"^```(\w*)\n(.*?)^```", text, FENCED)
    ]
    return [(name, text) for name, kind, text in found if kind in kinds]


def commands() -> list[list[str]]:
    """The words of every call of flowward; dots stand for more of them."""
    lines = "\n".join(text for _, text in blocks("", "sh")).replace("\\\n", " ").splitlines()
    return [shlex.split(line.partition(" > ")[0], comments=True)[1:] for line in lines if line.startswith("flowward ")]


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_command_on_a_page_has_its_options(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "mine.yaml").write_text("lora_rank: 4\n", "utf-8")
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


RUN = [(page, code) for page, code in blocks("python") if not page.startswith("examples/")]  # those have own tests


@pytest.mark.processor
@pytest.mark.parametrize(("page", "code"), RUN, ids=[page for page, _ in RUN])
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


SNIPPETS = blocks("python", "py")


@pytest.mark.parametrize(("page", "code"), SNIPPETS, ids=[page for page, _ in SNIPPETS])
def test_what_python_on_a_page_imports_from_flowward_exists(page: str, code: str) -> None:
    for line in ast.walk(ast.parse(code)):
        if isinstance(line, ast.ImportFrom) and (line.module or "").partition(".")[0] == "flowward":
            module = import_module(str(line.module))
            assert all(hasattr(module, each.name) or import_module(f"{line.module}.{each.name}") for each in line.names)


@pytest.mark.parametrize(("page", "text"), blocks("yaml"), ids=[page for page, _ in blocks("yaml")])
def test_every_block_of_yaml_on_a_page_is_a_config_file(page: str, text: str, tmp_path: Path) -> None:
    for folder in (ROOT / "recipes").iterdir():
        (tmp_path / folder.name).symlink_to(folder)
    file = tmp_path / "mine" / "own.yaml"
    file.parent.mkdir()
    file.write_text(text, "utf-8")
    if "budgets:" in text:
        assert plan.read(file)
        return
    chosen = agent_train.chosen if "kind: agent" in text else train.chosen
    assert chosen(["--config", str(file), "--output", str(tmp_path / "run")])


@pytest.mark.parametrize(("page", "text"), blocks("json"), ids=[page for page, _ in blocks("json")])
def test_every_block_of_json_on_a_page_is_json(page: str, text: str) -> None:
    try:
        json.loads(text)
    except ValueError:
        assert all(isinstance(json.loads(line), dict) for line in text.splitlines())  # lines of a prompt file


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8")):
        target = (page.parent / link).resolve()
        assert target.exists() or target.relative_to(ROOT / "docs").as_posix() in MADE, link
