"""Every option of every command at its extremes: exit code 0 or 2, one sentence, soon, and no memory without bound."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import fields as fields_of
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import pytest
from extremes import COMMANDS, Command, Toy, hurried, numbers
from tiny_agents import call, system
from tiny_agents import trainer as tiny_trainer
from tiny_language import language
from tiny_runs import bright, few_steps, taught

from flowward import ALGORITHMS, models, prompts
from flowward.agent import pretrain as agent_pretraining
from flowward.agent.algorithm import AgentFlow
from flowward.agent.language import Language
from flowward.agent.rollout import InProcess, Player
from flowward.agent.system import Limits
from flowward.agent.trainer import AgentRun
from flowward.cli import main
from flowward.commands import eval, policies, sample
from flowward.export import trained
from flowward.models import blueprint
from flowward.pages import report
from flowward.rewards import RewardError
from flowward.scenes import pretrain
from flowward.studies.folder import StudyFolder
from flowward.system import serving
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.run import Run
from flowward.training.trainer import Trainer

ONCE = [command for command in COMMANDS if command.name != "memory"]  # `memory` has the options of `train`
TEXTS = prompts.of("mine", ("a", "b", "c", "d"))
RUN = Run(images_per_update=24, group_size=12, microbatch=24, rollout_batch=24)


@pytest.fixture(scope="module")
def trained_agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of an agent."""
    folder = tmp_path_factory.mktemp("runs") / "agent"
    how = "--iterations 1 --questions-per-update 1 --group-size 2 --evaluation.episodes 2 --output"
    assert main(["agent", "train", *how.split(), str(folder)]) == 0
    return folder


@pytest.fixture
def light(trained_agent: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program with a toy in the place of a model, which ends where it would compute for long."""

    def end(*_: Any, **__: Any) -> NoReturn:
        raise SystemExit(0)

    monkeypatch.chdir(tmp_path)
    Path("null").symlink_to(os.devnull)
    for name in ("run", "other"):
        RunFolder.create(Path(name), {"model": "scenes"})
    for module in (sample, eval):
        monkeypatch.setattr(module, "policy_of", lambda *_, **__: Toy())
    monkeypatch.setattr(models, "load", lambda *_, **__: Toy())
    for owner, name in ((policies, "policy_of"), (trained, "load"), (blueprint, "load"), (serving, "listen")):
        monkeypatch.setattr(owner, name, end)
    for name in ("verify", "verify_model"):
        monkeypatch.setattr(f"flowward.verify.{name}", end)
    monkeypatch.setattr(pretrain, "pretrain", lambda settings: iter(()))
    monkeypatch.setattr(report, "write_loss_curve", lambda folder: folder)
    monkeypatch.setattr(agent_pretraining, "fit", end)
    monkeypatch.setattr(StudyFolder, "carry_out", end)
    Path("study.yaml").write_text("algorithms: [awm]\nbudgets: {images: 1000}\n")
    shutil.copytree(trained_agent, "agent")
    rows = [{"question": f"what is the age of {tower}", "answer": "3"} for tower in ("arlo", "brim", "cald")]
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def faults(command: Command, known: set[tuple[str, str]], capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """The command lines that end in anything but a result or a sentence."""
    for option, words in command.cases(known):
        Path("new.png").unlink(missing_ok=True)
        what = f"{command.name} --{option.name} {words[-1][:20]!r}"
        try:
            with hurried():
                code = main(words)
        except SystemExit as error:
            code = error.code or 0
        except BaseException as error:  # whatever it is, it is no sentence
            yield f"{what}: {type(error).__name__}: {str(error)[:200]}"
            continue
        said = capsys.readouterr().err
        if code not in (0, 2) or "Traceback" in said or "out of memory" in said:
            yield f"{what}: {code}: {said[:300]}"
        elif code == 2 and (said.count("flowward: ") != 1 or said.count("\n") != 1 or len(said) > 2000):
            yield f"{what}: not one sentence: {said[:300]}"


def test_each_command_works_without_them(light: None) -> None:
    """So that the sentences below are about the option alone."""
    for command in COMMANDS:
        try:
            assert main([*command.name.split(), *command.words]) == 0, command.name
        except SystemExit as end:
            assert not end.code, command.name


@pytest.mark.short
def test_a_result_or_one_sentence(light: None, capsys: pytest.CaptureFixture[str]) -> None:
    known, found, cases = set[tuple[str, str]](), list[str](), 0
    for command in ONCE:
        cases += len(list(command.cases(known)))
        found += faults(command, known, capsys)
        known |= {(option.name, option.metavar) for option in command.options if not option.positional}
    assert not found, "\n".join(found)
    assert cases > 400


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_a_result_or_one_sentence_for_each_command(
    command: Command, light: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not (found := list(faults(command, set(), capsys))), "\n".join(found)


def test_solver_with_noise_at_its_extremes(light: None, capsys: pytest.CaptureFixture[str]) -> None:
    for tau in ("0", "1e-308", "1e-150", "1e-8", "100"):
        Path("new.png").unlink(missing_ok=True)
        assert main(["sample", "scenes", "a", "--output", "new.png", "--solver", "sa", "--tau", tau]) == 0, tau


def test_numbers_of_training_are_refused_or_train() -> None:
    """Every number of every algorithm and of the training loop, with one iteration on a toy."""
    found, known, cases = list[str](), set[tuple[type, str]](), 0

    def tried(what: str, make: Any) -> None:
        try:
            with hurried():
                algorithm, run = make()
                toy = Toy()
                Trainer(algorithm, toy, bright, TEXTS, run, teachers=taught(algorithm, toy, TEXTS)).step()
        except (ValueError, TrainingError) as error:
            if not str(error).strip() or "codec" in str(error) or "verflow" in str(error):
                found.append(f"{what}: {error}")
        except BaseException as error:  # whatever it is, it is no sentence
            found.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")

    for name in ALGORITHMS:
        for what, make in numbers(few_steps(name), known):
            tried(f"{name} {what}", lambda make=make: (make(), RUN))
            cases += 1
    for what, make in numbers(RUN, known):
        tried(what, lambda make=make: (few_steps("awm"), make()))
        cases += 1
    assert not found, "\n".join(found)
    assert cases > 700


def test_numbers_of_agents_are_refused_or_train() -> None:
    """Every number of the algorithm, of the loop and of the limits, with one iteration of a tiny agent."""
    found, known, cases = list[str](), set[tuple[type, str]](), 0

    def tried(what: str, make: Any) -> None:
        try:
            with hurried():
                make()
        except (ValueError, TrainingError, RewardError) as error:
            if not str(error).strip() or "codec" in str(error) or "verflow" in str(error):
                found.append(f"{what}: {error}")
        except BaseException as error:  # whatever it is, it is no sentence
            found.append(f"{what}: {type(error).__name__}: {str(error)[:200]}")

    run = AgentRun(questions_per_update=2, group_size=4, updates_per_iteration=2, warmup=0)
    fields = ("questions_per_update", "group_size", "updates_per_iteration", "warmup")
    usual = {name: getattr(run, name) for name in fields}

    def step(algorithm: AgentFlow | None = None, given: AgentRun = run) -> None:
        changed = {each.name: getattr(given, each.name) for each in fields_of(given) if each.name != "output"}
        tiny_trainer(algorithm, **(usual | changed)).step()

    for what, make in numbers(AgentFlow(), known):
        tried(what, lambda make=make: step(make()))
        cases += 1
    for what, make in numbers(run, known):
        tried(what, lambda make=make: step(given=make()))
        cases += 1
    model = language()
    for what, make in numbers(Limits(max_turns=2, max_tokens=2), known):
        tried(what, lambda make=make: limited(model, make()).play(["a b", "c"]))
        cases += 1
    assert not found, "\n".join(found)
    assert cases > 150


def limited(model: Language, limits: Limits) -> Player:
    """A tiny agent with these limits."""
    agent = replace(system(model), limits=limits, reader=model.reader(limits.max_tokens))
    return Player(agent, InProcess(model, 1.0, limits.max_tokens), lambda uses: call(agent, uses), {}, 8)
