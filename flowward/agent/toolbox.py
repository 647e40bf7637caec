"""The tools of an agent: from the words of `--tool` to tools, and the calls of a batch.

| word | tool |
| --- | --- |
| `world` | the tools of the built-in world |
| `calculator` | arithmetic |
| `python` | a snippet of Python, sealed off |
| `search:FOLDER` | passages of your own documents |
| `answer:http://host/v1#model` | what a chat model answers (`#model` may be left out for a server with one) |
| `mcp:"command args"`, `mcp:http://host/mcp` | every tool of an MCP server |
| `file.py:function`, `package.module:function` | your own function |
"""

from __future__ import annotations

import inspect
import json
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from ..system.errors import named, unknown
from ..system.jobs import work
from ..system.paths import absolute, absolute_code
from ..system.user_code import find
from .episode import Messages, Observation, Use
from .tools import Card, Tool, ToolError

THREADS = 16  # calls of slow tools at once
BUILT_IN = ("answer", "calculator", "mcp", "python", "search", "world")
LONGEST = 200_000  # characters of a result that are looked at: the episode cuts it far shorter

Asker = Callable[[Messages], str]
"""asks a chat model; raises what a server that does not answer raises"""

Chat = Callable[[str], Asker]
"""a chat model by its address, `http://host/v1#model`"""


@dataclass
class Toolbox:
    """Tools by their names, and what calls them.

    A tool with the attribute `slow = True` is called in a thread, so it must not depend on other calls. All others are
    called one after the other, in the order of the batch. Results have that order too.
    """

    tools: Mapping[str, Tool]
    threads: int = THREADS
    _open: ExitStack = field(default_factory=ExitStack, repr=False)

    def __call__(self, uses: Sequence[Use]) -> list[Observation]:
        """The result of each call; whatever goes wrong is an observation."""
        found: dict[int, Observation] = {}
        slow = [place for place, use in enumerate(uses) if getattr(self.tools.get(use.tool), "slow", False)]
        for place, use in enumerate(uses):
            if place not in slow:
                found[place] = self._called(use)
        if slow:
            doers = [self._called] * min(self.threads, len(slow))
            results = work(doers, [uses[place] for place in slow], 0.0, lambda use: use.tool)
            found |= dict(zip(slow, results, strict=True))
        return [found[place] for place in range(len(uses))]

    def _called(self, use: Use) -> Observation:
        if use.tool not in self.tools:
            return Observation(unknown("tool", use.tool, self.tools), failed=True)
        try:
            return Observation(_text(self.tools[use.tool](**use.arguments)))
        except ToolError as error:
            return Observation(_text(str(error) or "the tool reports an error"), failed=True)
        except (Exception, SystemExit) as error:  # a user's tool may fail in any way
            return Observation(_text(f"the tool {use.tool} failed: {named(error)}"), failed=True)

    @classmethod
    def load(cls, names: Iterable[str], unconfined: bool = False, ask: Chat | None = None) -> Toolbox:
        """Tools by their words, see the top of this file.

        Args:
            unconfined: let `python` run without isolation.
            ask: makes the chat models of `answer`.

        Raises:
            ValueError: a word is unknown, a tool cannot be used here, or two have one name.
        """
        tools: dict[str, Tool] = {}
        made_of: dict[str, str] = {}
        with ExitStack() as stack:
            for word in names:
                for tool in _made(word.strip(), unconfined, ask, stack):
                    name = tool.card.name
                    if name in tools:
                        raise ValueError(f"two tools have the name '{name}': {made_of[name]} and {word}; leave one out")
                    tools[name], made_of[name] = tool, word
            return cls(tools, _open=stack.pop_all())

    def close(self) -> None:
        """End the servers that were started for tools."""
        self._open.close()

    def __enter__(self) -> Toolbox:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _text(result: Any) -> str:
    """A result as text that can be written as UTF-8: what is no text, as JSON if it can be."""
    if not isinstance(result, str):
        try:
            result = json.dumps(result, ensure_ascii=False)
        except (TypeError, ValueError, RecursionError):
            result = str(result)
    return result[:LONGEST].encode("utf-8", "replace").decode()


def _made(word: str, unconfined: bool, ask: Chat | None, stack: ExitStack) -> Sequence[Tool]:
    name, colon, rest = word.partition(":")
    rest = rest.strip()
    if name in BUILT_IN and bool(rest) != (name in ("answer", "mcp", "search")):
        raise ValueError(f"the tool {name} {NEEDS.get(name, 'takes nothing after its name')}")
    match name:
        case "world":
            from . import world

            return list(world.tools().values())
        case "calculator":
            from .calculator import Calculator

            return [Calculator()]
        case "python":
            from .confined import Python

            return [Python(unconfined=unconfined)]
        case "search":
            from .search import Search

            return [Search(Path(rest).expanduser())]
        case "answer":
            return [_answer(rest, ask)]
        case "mcp":
            from .mcp_tools import McpServer

            return stack.enter_context(closing(McpServer(_unquoted(rest)))).tools
    if not colon:
        raise ValueError(unknown("tool", word, BUILT_IN) + "; your own is file.py:function")
    return [own(find("tool", word))]


def located(word: str) -> str:
    """The word with absolute paths, so that the run can be resumed from another folder."""
    name, _, rest = word.partition(":")
    if name == "search":
        return f"search:{absolute(rest.strip())}"
    if name == "mcp":
        return f"mcp:{_located_command(_unquoted(rest.strip()))}" if rest.strip() else word
    return absolute_code(word)


def _located_command(command: str) -> str:
    """The command of a server with absolute paths for the files that it names; an address or a wrong one unchanged."""
    try:
        words = shlex.split(command)
    except ValueError:
        return command
    there = [absolute(each) if place or "/" in each else each for place, each in enumerate(words)]
    return shlex.join(there) if there != words else command


def _unquoted(command: str) -> str:
    """A command without quotes around the whole of it, which a shell takes away and a YAML file need not."""
    mark, inside = command[0], command[1:-1]
    return inside if mark in "\"'" and command[-1] == mark and mark not in inside else command


NEEDS = {
    "answer": "needs a chat model: answer:http://host/v1#model",
    "mcp": 'needs a server: mcp:"command arguments" or mcp:http://host/mcp',
    "search": "needs your documents: search:FOLDER or search:FILE.jsonl",
}


class AnswerTool:
    """The tool `answer`: what a chat model answers to a question, without the memory.

    Args:
        ask: asks the model.
        model: its name, for the card.
    """

    slow = True

    def __init__(self, ask: Asker, model: str = "a language model"):
        self.ask = ask
        self.card = Card(
            "answer",
            f"Asks {model}, which answers from what it knows.",
            {
                "type": "object",
                "properties": {"question": {"type": "string", "description": "the question, with all it needs"}},
                "required": ["question"],
            },
            "It sees nothing but this question, it may be wrong, and it calculates badly.",
        )

    def __call__(self, **arguments: Any) -> str:
        return self.ask((("system", INSTRUCTION), ("user", str(arguments["question"])))).strip()


INSTRUCTION = "Answer the question shortly and exactly. If you do not know, say so."


def _answer(address: str, ask: Chat | None) -> Tool:
    if not address.startswith(("http://", "https://")):
        raise ValueError(f"the tool answer {NEEDS['answer']}, not answer:{address}")
    if ask is None:
        raise ValueError("the tool answer cannot be used here: there are no chat models")
    return AnswerTool(ask(address), address.partition("#")[2] or "a language model")


class OwnTool:
    """A function of the user as a tool: its name, docstring and signature make the card."""

    def __init__(self, function: Callable[..., Any]):
        self.function, self.slow = function, bool(getattr(function, "slow", False))
        self.card = card_of(function)

    def __call__(self, **arguments: Any) -> str:
        found: str = self.function(**arguments)
        return found


def own(found: Any) -> Tool:
    """The tool of a user: an object with a `card`, a class that makes one, or a plain function.

    Raises:
        ValueError: it cannot be called with named arguments, or its card is wrong.
    """
    if isinstance(found, type):
        try:
            found = found()
        except Exception as error:
            raise ValueError(f"the tool {found.__name__} cannot be made: {named(error)}") from error
    card = getattr(found, "card", None)
    if card is None:
        return OwnTool(found)
    if not isinstance(card, Card) or not card.name.strip():
        raise ValueError(f"the card of the tool {type(found).__name__} must be a flowward.agent.tools.Card with a name")
    tool: Tool = found
    return tool


def card_of(function: Callable[..., Any]) -> Card:
    """A card from a function: what it does is the first paragraph of its docstring, its limits are the second.

    Raises:
        ValueError: it has no docstring, or an argument without a name.
    """
    name = getattr(function, "__name__", type(function).__name__)
    about, _, rest = (inspect.getdoc(function) or "").partition("\n\n")
    if not about.strip():
        raise ValueError(f"the tool {name} needs a docstring: the planner chooses tools by what they say they do")
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # names that only exist for a type checker
        hints = {}
    properties, required, closed = {}, [], True
    for each in inspect.signature(function).parameters.values():
        if each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL):
            raise ValueError(f"the tool {name} has an argument '{each.name}' that cannot be given by name")
        if each.kind is each.VAR_KEYWORD:
            closed = False
            continue
        properties[each.name] = _schema(hints.get(each.name))
        if each.default is each.empty:
            required.append(each.name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": not closed}
    return Card(name, " ".join(about.split()), schema, " ".join(rest.partition("\n\n")[0].split()))


def _schema(hint: Any) -> dict[str, Any]:
    """The JSON schema of a type; empty if it has none."""
    from pydantic import TypeAdapter

    if hint is None:
        return {}
    try:
        return TypeAdapter(hint).json_schema()
    except Exception:  # a type of the user
        return {}
