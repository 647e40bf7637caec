"""What several commands share: reading options. No torch is loaded for it: see policies.py for the models named."""

from __future__ import annotations

import difflib
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr
from traceback import walk_tb
from typing import Any

import tyro

PLAIN = (tyro.conf.AvoidSubcommands,)  # flags are of the kind of value that a setting has: another preset has another


def take(words: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name value` or `--name=value`, and the other words."""
    rest, value = [], None
    pending = iter(words)
    for word in pending:
        if word == f"--{name}":
            value = next(pending, None)
            if value is None:
                raise ValueError(f"--{name} needs a value")
        elif word.startswith(f"--{name}="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    return value, rest


def given(words: list[str], name: str) -> str | None:
    """The value of a flag, which stays among the words."""
    return take(words, name)[0] if any(word.partition("=")[0] == f"--{name}" for word in words) else None


def parse(
    kind: Any,
    words: list[str],
    command: str,
    default: Any = None,
    description: str | None = None,
    beside: Sequence[str] = (),
) -> Any:
    """Flags to a dataclass, by tyro (which explains a bad flag itself, and exits with code 2).

    `beside` are options that the command has taken out of the words before, so tyro does not know them.

    Raises:
        ValueError: the flags are well formed, and one of our dataclasses refuses their values; or a flag is nearly one
            of `beside`.
    """
    extra = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(
                kind, args=words, prog=f"flowward {command}", description=description, config=PLAIN, **extra
            )
    except SystemExit as end:
        if refusal := _refusal(end):
            raise refusal from None
        _refuse_misspelt(words, beside)
        print(said.getvalue(), end="", file=sys.stderr)
        raise


def _refuse_misspelt(words: list[str], known: Sequence[str]) -> None:
    """Raises ValueError where a flag is nearly one of these names."""
    for flag in (word.partition("=")[0] for word in words):
        if not flag.startswith("--") or "." in flag:  # --algorithm.lam is there, though it looks like --algorithm
            continue
        if near := difflib.get_close_matches(flag[2:], known, n=1, cutoff=0.8):
            raise ValueError(f"unknown option '{flag}'; did you mean '--{near[0]}'?")


def _refusal(end: SystemExit) -> ValueError | None:
    """The ValueError of our own code that made tyro exit, if that was why."""
    error = end.__context__
    while error and error.__context__:
        error = error.__context__
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return None
    *_, (frame, _) = walk_tb(error.__traceback__)
    return error if frame.f_globals["__name__"].startswith("flowward.") else None


def said(words: Sequence[str]) -> set[str]:
    """The names of the settings that flags name: what is said may be what nobody would have to say."""
    flags = (word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--"))
    return {flag.removeprefix("no-").replace("-", "_") for flag in flags}


def set_threads(number: int | None) -> None:
    """Raises ValueError where a number of CPU threads was given that cannot be."""
    if number is None:
        return
    if number < 1:
        raise ValueError(f"threads must be at least 1, not {number}")
    import torch  # here: most of what reads options computes nothing

    torch.set_num_threads(number)
