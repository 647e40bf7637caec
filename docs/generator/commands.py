"""One page per command: what `flowward COMMAND --help-all` prints, as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from io import StringIO
from unittest.mock import patch

from flowward.commands import demo, every, help, module, options
from flowward.commands.help import Option, Page, example

from .markdown import code, fenced, plain, table

FOLDER = "reference/commands"
WIDTH = 100  # columns of an example
START = """
flowward demo                         # train the built-in model and write a report
flowward train --output runs/first    # the same, with all options of training
flowward agent train                  # train a language agent on the built-in questions
"""
MOST_WORDS = 3  # of a default that is a value; more are a phrase
DEFAULT = re.compile(r" ?\(default: (.*)\)$")


def shown(command: str, *words: str) -> tuple[Page, Sequence[Option]]:
    """What a command gives to its help page, after words such as --algorithm NAME."""
    found: list[tuple[Page, Sequence[Option]]] = []

    def keep(page: Page, name: str, own: Sequence[Option], full: bool) -> str:
        found.append((page, own))
        return ""

    with ExitStack() as stack:
        for each in (options, demo):
            stack.enter_context(patch.object(each, "show", keep))
        stack.enter_context(redirect_stdout(StringIO()))
        stack.enter_context(suppress(SystemExit))
        module(command).run([*words, "--help-all"])
    return found[0]


def defaulted(option: Option) -> tuple[str, str]:
    """The text of an option without its default, and the default."""
    match = DEFAULT.search(option.text)
    if match:
        return option.text[: match.start()], match[1]
    off = "off" if option.switch is False else "none" if option.optional and "none:" in option.text else ""
    return option.text, off


def rows(own: Sequence[Option]) -> list[list[str]]:
    """Lines of a table of options."""
    texts = [(each, *defaulted(each)) for each in own]
    return [[code(flag(each)), plain(text), value(default), code(each.metavar)] for each, text, default in texts]


def flag(option: Option) -> str:
    """The name of an option as on the command line, without its values."""
    return option.left.removesuffix(option.metavar).strip()


def value(default: str) -> str:
    """A default: as code, unless it is a phrase."""
    phrase = len(default.split()) > MOST_WORDS or any(sign in default for sign in ";'(")
    return plain(default) if phrase else code(default)


def grouped(own: Sequence[Option]) -> Mapping[str, list[Option]]:
    """Options by the part that they belong to."""
    found: dict[str, list[Option]] = {}
    for each in own:
        found.setdefault(each.group, []).append(each)
    return found


def title(group: str, page: Page) -> str:
    """The title of a part, as on the help page."""
    return help.title(group, page)


def file(command: str) -> str:
    """The name of a command's page."""
    return f"{command.replace(' ', '-')}.md"


def _page(command: str) -> str:
    page, own = shown(command)
    whole = [*page.beside, *own]
    flags = grouped([each for each in whole if not each.positional])
    words = [each for each in whole if each.positional]
    usage = f"flowward {command} [options] {' '.join(each.metavar for each in words)}"
    parts = [f"# flowward {command}", plain(page.about), f"Usage: {code(usage.strip())}"]
    if page.examples:
        told = "\n".join(example(said, what, WIDTH) for said, what in page.examples)
        parts.append(fenced("\n".join(line[2:] for line in told.splitlines())))
    if words:
        parts.append(table(["argument", "meaning"], [[code(each.metavar), plain(each.text)] for each in words]))
    for group, part in flags.items():
        parts += [f"## {title(group, page)}", table(["option", "meaning", "default", "values"], rows(part))]
    if command == "train":
        parts.append("Options of the other algorithms are on [their pages](../../algorithms/index.md).")
    if command == "agent train":
        parts.append("The same settings by their keys in a file: [config.yaml of agents](../agent_config.md).")
    return "\n\n".join(parts) + "\n"


def _index() -> str:
    listed = [[f"[`flowward {name}`]({file(name)})", plain(what)] for name, what in every().items()]
    return "\n\n".join(
        [
            "# Commands",
            "This page is for finding a command. Each page lists all options of one command. Start here:",
            fenced(START),
            table(["command", "what it does"], listed),
            "`--help` shows the options that most runs need, `--help-all` all of them. `--debug` after any command "
            "shows the traceback of an error. The exit code is 0 on success, and 2 if the input is wrong.\n",
        ]
    )


def pages() -> dict[str, str]:
    """The list of commands, and a page for each."""
    return {f"{FOLDER}/index.md": _index(), **{f"{FOLDER}/{file(name)}": _page(name) for name in every()}}
