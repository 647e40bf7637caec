"""What Tab offers in a shell: every command and option that there is, and known values."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from flowward.algorithms import CLASSES
from flowward.cli import main
from flowward.commands import AGENT, COMMANDS, completion
from flowward.commands import every as every_command

SHELLS = [shell for shell in completion.SHELLS if shutil.which(shell)]  # bash everywhere; others where they are


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: completion.printed(shell) for shell in completion.SHELLS}


@pytest.fixture(scope="module")
def bash(scripts: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    script = tmp_path_factory.mktemp("completion") / "flowward.bash"
    script.write_text(scripts["bash"])
    return script


def offered(script: Path, *words: str) -> set[str]:
    """What bash offers for the last of the words."""
    code = (
        f'source {script}; COMP_WORDS=(flowward "$@"); COMP_CWORD=$#; _flowward; printf \'%s\\n\' "${{COMPREPLY[@]}}"'
    )
    return set(subprocess.run(["bash", "-c", code, "x", *words], capture_output=True, text=True).stdout.split())


def test_commands_are_completed(bash: Path) -> None:
    assert offered(bash, "") == {*COMMANDS, "--help", "--version"}
    assert offered(bash, "se") == {"serve-reward"}
    assert offered(bash, "agent", "") == {*AGENT, "--help"}
    assert offered(bash, "agent", "p") == {"prompts", "pretrain"}


@pytest.mark.parametrize("command", every_command())
def test_every_option_of_a_command_is_completed(bash: Path, command: str) -> None:
    own = {flag for option in completion.options(command) for flag in completion.flags(option)}
    assert offered(bash, *command.split(), "--") == own | {"--help", "--help-all", "--debug"}


def test_values_are_completed(bash: Path) -> None:
    assert offered(bash, "train", "--precision", "") == {"auto", "bf16", "float32"}
    assert offered(bash, "train", "--algorithm", "grpo") == {name for name in CLASSES if name.startswith("grpo")}
    assert "ocr" in offered(bash, "train", "--reward", "")
    assert offered(bash, "train", "--prompts", "") == set()  # it may be a file
    assert offered(bash, "export", "x", "--weights", "") == {"policy", "ema"}
    assert offered(bash, "list", "re") == {"rewards", "recipes"}
    assert offered(bash, "train", "--output", "") == set()  # then bash completes files


def test_values_of_agents_are_not_those_of_images(bash: Path) -> None:
    assert offered(bash, "agent", "train", "--reward", "") == {"exact", "number", "f1"}
    assert offered(bash, "agent", "train", "--preset", "") == {"world", "qwen2.5-7b"}
    assert offered(bash, "agent", "train", "--precision", "") == {"auto", "bf16", "float32"}
    assert offered(bash, "agent", "train", "--verifier", "") == {"rule", "world", "same"}
    assert offered(bash, "agent", "train", "--tools", "") == {"world", "calculator", "python"}
    assert offered(bash, "agent", "eval", "x", "--weights", "") == {"policy", "ema", "reference"}
    assert offered(bash, "agent", "prompts", "ver") == {"verifier"}
    assert "--reward" not in offered(bash, "agent", "solve", "--")


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_is_one_of_its_shell(scripts: dict[str, str], shell: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(scripts[shell])
    done = subprocess.run([shell, "-n", str(tmp_path / "script")], capture_output=True, text=True)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_every_script_has_every_option(scripts: dict[str, str], shell: str) -> None:
    for command in every_command():
        for option in completion.options(command):
            for flag in completion.flags(option):
                assert (f"-l {flag[2:]} " if shell == "fish" else flag) in scripts[shell]


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--print-completion", "bsh"], ["--print-completion"]):
        assert main(words) == 2
        assert "unknown shell" in capsys.readouterr().err
    assert main(["--print-completion", "fish"]) == 0
    assert capsys.readouterr().out.startswith("# flowward in fish")
