"""The command line. It dispatches to commands/ and turns errors into sentences.

Bad input ends in one sentence on stderr and exit code 2; `--debug` shows where it came from.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper

from .commands import COMMANDS
from .system.paths import expanded
from .system.terminal import tell

LONGEST = 300  # characters of one word in a sentence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns the exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        try:
            return _run(words)
        finally:
            sys.stdout.flush()  # here, where a reader that has left is no error
    except BrokenPipeError:  # who read along has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it is told again at the end
        return 141


def _run(words: list[str]) -> int:
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a sign shows ?, and the command goes on
    debug = "--debug" in words
    words = [expanded(word) for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] == "--version":
        from . import __version__

        print(f"flowward {__version__}")
        return 0
    try:
        _refuse_broken(words)
        if words[0] == "--print-completion":
            from .commands.completion import printed

            print(printed(*words[1:2] or [""]), end="")
            return 0
        if words[0] not in COMMANDS:
            from .system.errors import unknown

            raise ValueError(unknown("command", words[0], COMMANDS))
        module = import_module(f".commands.{words[0].replace('-', '_')}", __package__)
        return int(module.run(words[1:]))
    except BrokenPipeError:
        raise
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exc()
        elif not _foreseen(error):
            raise
        _say(_sentence(error))
        return 2
    except KeyboardInterrupt:
        _say("interrupted")
        return 130


def _say(sentence: str) -> None:
    """Once, where several processes share a run: they mostly end for one reason."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        from .system.attempts import is_news

        if not is_news(sentence):
            return
    tell(sentence)


def _foreseen(error: Exception) -> bool:
    """RuntimeErrors of our own, and about memory, are for the user; torch's are bugs, and their traceback is wanted."""
    if not isinstance(error, RuntimeError) or _is_memory(error):
        return True
    from .rewards import RewardError
    from .system.distributed import Deserted
    from .system.memory import OutOfMemory
    from .training.course import TrainingError

    return isinstance(error, (Deserted, OutOfMemory, RewardError, TrainingError))


def _is_memory(error: Exception) -> bool:
    """Without waiting for torch if it was not needed so far: then the error is Python's own."""
    if "torch" not in sys.modules:
        return isinstance(error, MemoryError)
    from .system.memory import OutOfMemory, ran_out

    return ran_out(error) and not isinstance(error, OutOfMemory)  # that one is a sentence already


def _sentence(error: Exception) -> str:
    if _is_memory(error):
        found = str(error).splitlines()[:1] or ["no details"]
        return (
            f"out of memory ({found[0]}): use smaller batches or images, or free memory that other programs use; "
            "`flowward memory` estimates what a model needs"
        )
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {_shortened(str(error.filename))}" if error.filename else error.strerror
    said = " ".join(map(_shortened, str(error).split()))  # YAML and rewards may speak in several lines
    return said or f"{type(error).__name__} without a message; --debug shows where it was raised"


def _shortened(word: str) -> str:
    """A word that would fill the terminal, without its end."""
    return word if len(word) <= LONGEST else f"{word[:60]}... ({len(word):,} characters)"


def _refuse_broken(words: Sequence[str]) -> None:
    """Raises ValueError for a word that no file of a run can hold: it is not text in UTF-8."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"'{word}' is not valid UTF-8: write it with other characters, or rename it") from error


def _overview() -> str:
    lines = [f"  {name:<14}{what}" for name, what in COMMANDS.items()]
    return "\n".join(
        [
            "flowward: reinforcement learning for flow-matching models",
            "",
            "usage: flowward COMMAND [options]",
            "",
            *lines,
            "",
            "flowward COMMAND --help shows the options of a command.",
            "",
            "First steps",
            "  # post-train the built-in model: about seven minutes on a laptop",
            "  flowward train --output runs/first",
            "  # look at images of the trained model",
            "  flowward sample runs/first 'a red circle'",
            "  # how much better is it than before?",
            "  flowward eval scenes runs/first",
            "",
            "--print-completion bash|zsh|fish prints a script that completes options in a shell.",
            "--debug after any command shows the traceback of an error.",
        ]
    )
