"""What several commands share: words to options, and a sentence where they are wrong. No torch."""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterable, Sequence
from contextlib import redirect_stderr
from traceback import walk_tb
from typing import Any

import tyro

from .help import Option, Page, Shown, options_of, show

PLAIN = (
    tyro.conf.AvoidSubcommands,  # flags are of the kind of value that a setting has: another preset has another
    tyro.conf.HelptextFromCommentsOff,  # pages of help are our own, and reading the code for comments takes long
)
NEAR = 0.75  # likeness from which a misspelt option is recognised


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
    if value == "":
        raise ValueError(f"--{name} is empty: give it a value, or leave it out")
    return value, rest


def every(words: list[str], name: str) -> tuple[list[str], list[str]]:
    """All values of a flag that may be repeated, and the other words."""
    found = list[str]()
    while any(word.partition("=")[0] == f"--{name}" for word in words):
        at = next(n for n, word in enumerate(words) if word.partition("=")[0] == f"--{name}")
        length = 1 if "=" in words[at] else 2
        value, _ = take(words[at : at + length], name)
        found.append(value or "")
        words = [*words[:at], *words[at + length :]]
    return found, words


def switched(words: list[str], name: str) -> tuple[bool, list[str]]:
    """Whether a flag without a value is given, and the other words."""
    return f"--{name}" in words, [word for word in words if word != f"--{name}"]


def given(words: list[str], name: str) -> str | None:
    """The value of a flag, which stays among the words."""
    return take(words, name)[0] if any(word.partition("=")[0] == f"--{name}" for word in words) else None


def asks_help(words: Sequence[str]) -> bool:
    """Whether a help page is asked for."""
    return bool({"-h", "--help", "--help-all"} & {*words})


def parse(kind: Any, words: Sequence[str], command: str, default: Any = None, page: Page | None = None) -> Any:
    """Flags to a dataclass, by tyro; the page of help is our own. `default` has the values of what is not named.

    Raises:
        SystemExit: help was asked for, and is printed.
        ValueError: an option is unknown, or a value is refused; it says which one.
    """
    page, options = page or Page(about=_about(kind)), options_of(kind, default)
    if asks_help(words):
        print(show(page, command, options, full="--help-all" in words))
        raise Shown(page, options)
    extra = {} if default is None else {"default": default}
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return tyro.cli(kind, args=_nones(words, options), prog=f"flowward {command}", config=PLAIN, **extra)
    except SystemExit as end:
        if not end.code:  # a completion for the shell was printed
            raise
        raise _own(end) or _refusal(words, [*page.beside, *options], command, said.getvalue()) from None


def _about(kind: Any) -> str:
    return " ".join((kind.__doc__ or "").split())


def _nones(words: Sequence[str], options: Iterable[Option]) -> list[str]:
    """`none` as Python spells it, where an option may be none."""
    flags, found = {f"--{each.name}" for each in options if each.optional}, list[str]()
    for word in words:
        name, equals, value = word.partition("=")
        if word == "none" and found and found[-1] in flags:
            word = "None"
        elif equals and value == "none" and name in flags:
            word = f"{name}=None"
        found.append(word)
    return found


def _own(end: SystemExit) -> ValueError | None:
    """The ValueError of our own code that made tyro exit, if that was why."""
    error = end.__context__
    while error and error.__context__:
        error = error.__context__
    if not isinstance(error, ValueError) or error.__traceback__ is None:
        return None
    *_, (frame, _) = walk_tb(error.__traceback__)
    return error if frame.f_globals["__name__"].startswith("flowward.") else None


def _refusal(words: Sequence[str], options: Sequence[Option], command: str, said: str) -> ValueError:
    """One sentence about what tyro could not take; `said` is its own, in a box."""
    flags = {each.name: each for each in options if not each.positional}
    flags |= {f"no-{name}": each for name, each in flags.items() if each.switch is not None}
    flags |= {re.sub(r"([^.]*)$", r"no-\1", name): each for name, each in flags.items() if each.switch is not None}
    for word in words:
        name = word.partition("=")[0][2:].replace("_", "-")
        if word.startswith("--") and name not in flags:
            near = difflib.get_close_matches(name, flags, n=1, cutoff=NEAR)
            hint = f"did you mean '--{near[0]}'?" if near else f"flowward {command} --help-all lists the options"
            return ValueError(f"unknown option '--{name}'; {hint}")
    told = _plain(said)
    named = re.search(r"(?:Error parsing|argument) '?--([\w.-]*\w)", told)
    if named and (chosen := flags.get(named[1].replace("_", "-"))):
        return ValueError(_wrong(words, chosen))
    if stray := re.search(r"Unrecognized options: ([^\s,]+)", told):
        return ValueError(f"unexpected word '{stray[1]}'; flowward {command} --help shows what it takes")
    missing = re.search(r"(?:Missing from [^:]*: |argument ')(\[?[\w-]+)", told)
    for each in options:
        if missing and missing[1] in (each.name, each.metavar.split()[0] if each.positional else f"--{each.name}"):
            return ValueError(f"{each.left} is missing: {each.text}")
    return ValueError(f"{told.partition(' For full helptext')[0]} (flowward {command} --help)")


def _plain(box: str) -> str:
    """A text without the box around it, whose lines are dashes or spaces where a terminal knows no better ones."""
    lines = (line.strip("│╰╯ ") for line in box.splitlines() if not line.startswith("╭"))
    return " ".join(line for line in lines if line.strip("─-"))


def _wrong(words: Sequence[str], option: Option) -> str:
    """What an option takes, and what it was given instead."""
    flag, values = f"--{option.name}", list[str]()
    for number, word in enumerate(words):
        name, equals, value = word.replace("_", "-").partition("=")
        if name == flag:
            rest = words[number + 1 :]
            stop = next((n for n, each in enumerate(rest) if each.startswith("--")), len(rest))
            values = [value] if equals else [*rest[:stop]]
    if not values:
        return f"{flag} needs a value: {option.metavar}"
    kind = {"N": "a whole number", "NUMBER": "a number"}.get(option.metavar, option.metavar)
    return f"{flag} takes {kind}, not '{' '.join(values)}'"


def said(words: Sequence[str]) -> set[str]:
    """The names of the settings that flags name: what is said may be what nobody would have to say."""
    flags = (word.partition("=")[0].removeprefix("--") for word in words if word.startswith("--"))
    return {flag.removeprefix("no-").replace("-", "_") for flag in flags}


def count_of_processes(given: str | None) -> int:
    """The value of --processes; 1 if it is not given.

    Raises:
        ValueError: it is no whole number of at least 1, or one of many digits (`launching.launch` refuses others).
    """
    if given is None:
        return 1
    if not (given.isdecimal() and given.strip("0")):
        raise ValueError(f"--processes must be a whole number of at least 1, not '{given}'")
    if len(given) > 9:
        raise ValueError(f"--processes has {len(given)} digits: no machine can start so many")
    return int(given)


def set_threads(number: int | None) -> None:
    """Raises ValueError where a number of CPU threads was given that cannot be."""
    if number is None:
        return
    most = max(64, os.cpu_count() or 1)
    if not 1 <= number <= most:
        raise ValueError(f"threads must be between 1 and {most}, not {number}")
    import torch  # here: most of what reads options computes nothing

    torch.set_num_threads(number)
