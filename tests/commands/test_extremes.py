"""Every option of every command at its extremes: exit code 0 or 2, one sentence, soon, and no memory without bound."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from extremes import COMMANDS, Command, Toy, hurried, numbers
from tiny_runs import bright, few_steps

from flowward import ALGORITHMS, models, prompts
from flowward.cli import main
from flowward.commands import eval, policies, sample
from flowward.models import blueprint
from flowward.pages import report
from flowward.scenes import pretrain
from flowward.system import serving
from flowward.training.course import TrainingError
from flowward.training.folder import RunFolder
from flowward.training.run import Run
from flowward.training.trainer import Trainer

ONCE = [command for command in COMMANDS if command.name != "memory"]  # `memory` has the options of `train`
TEXTS = prompts.of("mine", ("a", "b", "c", "d"))
RUN = Run(images_per_update=24, group_size=12, microbatch=24, rollout_batch=24)


@pytest.fixture
def light(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
    for owner, name in ((policies, "policy_of"), (blueprint, "load"), (serving, "listen")):
        monkeypatch.setattr(owner, name, end)
    for name in ("verify", "verify_model"):
        monkeypatch.setattr(f"flowward.verify.{name}", end)
    monkeypatch.setattr(pretrain, "pretrain", lambda settings: iter(()))
    monkeypatch.setattr(report, "write_loss_curve", lambda folder: folder)


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
            assert main([command.name, *command.words]) == 0, command.name
        except SystemExit as end:
            assert not end.code, command.name


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
                Trainer(algorithm, Toy(), bright, TEXTS, run).step()
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
