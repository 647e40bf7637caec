"""The tools of any MCP server, through the official SDK: a command that is started here, or the address of a server.

Each server has a thread with an event loop, because the SDK is asynchronous and an agent is not. A server that dies or
hangs during a run is started again once, and the call is repeated; if that does not help, the planner reads so.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as Late
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TextIO, TypeVar, cast

from ..system.addresses import without_password
from ..system.asking import check_token
from ..system.errors import named
from .tools import Card, ToolError

START, CALL, ALIVE = 30.0, 60.0, 5.0  # seconds to start, to answer a call, to show that it is alive
CLOSE = 10.0  # seconds to end: the SDK asks, and kills a server that does not listen
TOKEN = "FLOWWARD_MCP_TOKEN"  # environment variable, sent to servers that are given by their addresses
PAUSE = 60.0  # seconds for which a server that could not be started again is not tried
SHOWN = 60  # characters of a command in a message
LONGEST = 600  # characters of what a server says about a tool
PAGES = 100  # of a list of tools

T = TypeVar("T")


@dataclass(frozen=True)
class McpTool:
    """A tool of an MCP server. Its card is that of the beginning of the run."""

    server: McpServer
    card: Card
    slow = True

    def __call__(self, **arguments: Any) -> str:
        return self.server.call(self.card, arguments)


class _Lost(Exception):
    """The server is dead or does not answer."""


@dataclass
class _Connection:
    """A started server."""

    stop: asyncio.Event = field(default_factory=asyncio.Event)
    client: Any = None  # the SDK's
    task: asyncio.Task[None] | None = None  # it opens and closes the connection
    cards: dict[str, Card] = field(default_factory=dict)  # its tools when they were last listed
    changed: bool = False  # it has said that they have changed since

    async def heard(self, message: Any) -> None:
        """A message that the server sends by itself."""
        self.changed |= getattr(message, "method", "") == "notifications/tools/list_changed"


@dataclass
class McpServer:
    """One server.

    Args:
        where: `http://host/mcp`, or a command with its arguments. Words `NAME=value` before the command set variables
            of its environment, which otherwise has only HOME, PATH and the like; `$NAME` in a value is one of ours.
        patience: seconds that a call may take.

    Raises:
        ValueError: the SDK is not installed, there is no such program or server, or it has no tools.
    """

    where: str
    patience: float = CALL
    start: float = START
    tools: list[McpTool] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        self._words, self._environment = ([], {}) if _is_address(self.where) else _split(self.where)
        shown = " ".join(self._words) or without_password(self.where)  # without variables: they may be keys
        self._shown = shown if len(shown) <= SHOWN else f"{shown[:SHOWN]} ..."
        try:
            import mcp  # noqa: F401
        except ImportError as error:
            raise ValueError("the tools of MCP servers need a package; pip install 'flowward[agent]'") from error
        logging.getLogger("mcp").addHandler(logging.NullHandler())  # its tracebacks say less than our sentences
        self._lock, self._number, self._down = threading.Lock(), 0, (0.0, "")
        self._errors = cast(TextIO, tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace"))  # noqa: SIM115
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # servers of a run that ends with an error are ended too
        self._open: _Connection | None = None
        self._refused = 0  # the HTTP status of the last answer, if it is an error
        try:
            self._open = self._connected()
            if not self._open.cards:
                raise _Lost("it has no tools")
        except _Lost as error:
            self.close()
            raise ValueError(f"the MCP server '{self._shown}' cannot be used: {error}") from error
        self.tools = [McpTool(self, card) for card in self._open.cards.values()]

    def call(self, card: Card, arguments: Mapping[str, Any]) -> str:
        """The text of a tool's result.

        Raises:
            ToolError: the tool reports an error or has changed, or the server does not answer.
        """
        for again in (False, True):
            number, connection = self._current(card)
            try:
                return self._called(connection, card, arguments)
            except _Lost as error:
                if again:
                    self._give_up(number, str(error))
                    raise ToolError(f"{self._named(card)}: {error}, also after a restart") from error
                self._restart(number, str(error), card)
        raise AssertionError  # not reached

    def close(self) -> None:
        """End the server and its thread. Takes some seconds if the server hangs."""
        atexit.unregister(self.close)
        if self._loop.is_closed():
            return
        with suppress(Late):
            asyncio.run_coroutine_threadsafe(self._finished(), self._loop).result(CLOSE + 1)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._errors.close()

    async def _finished(self) -> None:
        """Stop the connection, and wait until this one and earlier ones have ended their servers."""
        if self._open:
            self._open.stop.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        if others:
            await asyncio.wait(others, timeout=CLOSE)

    def _named(self, card: Card) -> str:
        return f"the tool {card.name} of the MCP server '{self._shown}'"

    def _current(self, card: Card) -> tuple[int, _Connection]:
        """The connection, and its number. One that is down is tried again after a pause."""
        with self._lock:
            if self._open is None:
                until, why = self._down
                if time.monotonic() < until:
                    raise ToolError(f"{self._named(card)}: {why}")
                self._reopen(why, card)
            assert self._open
            return self._number, self._open

    def _restart(self, number: int, why: str, card: Card) -> None:
        """Start the server again, unless another thread has done so since."""
        with self._lock:
            if number == self._number:
                self._reopen(why, card)

    def _give_up(self, number: int, why: str) -> None:
        """The next call starts the server anew, and does not wait for this connection."""
        with self._lock:
            if number == self._number:
                self._stop()
                self._down = time.monotonic(), why

    def _stop(self) -> None:
        if self._open:
            self._loop.call_soon_threadsafe(self._open.stop.set)  # it ends in the background
        self._open = None

    def _reopen(self, why: str, card: Card) -> None:
        self._stop()
        self._number += 1
        try:
            self._open = self._connected()
        except _Lost as error:
            self._down = time.monotonic() + PAUSE, f"{why}, and it cannot be started again: {error}"
            raise ToolError(f"{self._named(card)}: {self._down[1]}") from error

    def _called(self, connection: _Connection, card: Card, arguments: Mapping[str, Any]) -> str:
        if connection.changed:
            self._list(connection, ALIVE)
        self._refuse_changed(connection, card)
        try:
            result = self._ask(
                connection,
                lambda client: client.call_tool(card.name, dict(arguments), read_timeout_seconds=self.patience),
                self.patience,
            )
        except Exception as error:  # of the connection, or what the SDK raises for an answer that is an error
            why = str(error) if isinstance(error, _Lost) else named(error)
            try:
                self._list(connection, ALIVE)
            except _Lost as dead:
                raise (error if isinstance(error, _Lost) else dead) from error
            self._refuse_changed(connection, card)
            raise ToolError(f"{self._named(card)}: {why}") from error
        text = _text(result)
        if result.is_error:
            self._list(connection, ALIVE)
            self._refuse_changed(connection, card)
            raise ToolError(text or "the tool reports an error")
        return text

    def _refuse_changed(self, connection: _Connection, card: Card) -> None:
        """Raise ToolError if the tool is not what it was at the beginning of the run."""
        now = connection.cards.get(card.name)
        if now is None:
            raise ToolError(f"{self._named(card)} is gone: the server has changed its tools since the run began")
        if now.schema != card.schema:
            raise ToolError(
                f"{self._named(card)} has changed since the run began: its arguments are now "
                f"{', '.join(now.properties) or 'none'}"
            )

    def _connected(self) -> _Connection:
        """Start the server, connect and list its tools. Raises _Lost."""
        ready: Future[_Connection] = Future()
        serving = asyncio.run_coroutine_threadsafe(self._serve(ready), self._loop)
        try:
            connection = ready.result(self.start)
        except Late:
            serving.cancel()
            raise _Lost(f"it did not start within {self.start:g} s") from None
        except Exception as error:
            raise _Lost(self._why(error)) from error
        try:
            self._list(connection, self.start)
        except _Lost:
            self._loop.call_soon_threadsafe(connection.stop.set)
            raise
        return connection

    async def _serve(self, ready: Future[_Connection]) -> None:
        """Hold one connection open until it is stopped. The SDK wants that one task opens and closes it."""
        from mcp import Client

        connection = _Connection(task=asyncio.current_task())
        heard = connection.heard
        try:
            async with AsyncExitStack() as stack:
                transport = await self._transport(stack)
                client = Client(transport, read_timeout_seconds=self.start, message_handler=heard, cache=None)
                connection.client = await stack.enter_async_context(client)
                ready.set_result(connection)
                await connection.stop.wait()
        except BaseException as error:  # groups of errors, cancellation
            if not ready.done():
                ready.set_exception(_first(error))

    async def _transport(self, stack: AsyncExitStack) -> Any:
        from mcp import StdioServerParameters, stdio_client

        if _is_address(self.where):
            return await self._http(stack)
        if not shutil.which(self._words[0]):
            raise FileNotFoundError(f"there is no program '{self._words[0]}'")
        self._errors.seek(0)
        self._errors.truncate()
        given = StdioServerParameters(command=self._words[0], args=self._words[1:], env=self._environment)
        return stdio_client(given, errlog=self._errors)

    async def _http(self, stack: AsyncExitStack) -> Any:
        import httpx2
        from mcp.client.streamable_http import streamable_http_client

        token = os.environ.get(TOKEN)
        check_token(token)
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}

        async def look(response: Any) -> None:  # the SDK does not pass the status on
            self._refused = response.status_code if response.status_code >= 400 else 0

        seconds = httpx2.Timeout(max(self.patience, self.start))
        client = httpx2.AsyncClient(headers=headers, timeout=seconds, event_hooks={"response": [look]})
        return streamable_http_client(self.where, http_client=await stack.enter_async_context(client))

    def _why(self, error: BaseException) -> str:
        """What went wrong, with the last line that the server printed on standard error."""
        if isinstance(error, (FileNotFoundError, ValueError)):
            return str(error)
        if self._refused:
            advice = f"; its token is read from the environment variable {TOKEN}" if self._refused in (401, 403) else ""
            return f"it answers {self._refused}{advice}"
        what = "the server has ended" if str(error) == "Connection closed" else named(error)
        self._errors.seek(max(0, os.fstat(self._errors.fileno()).st_size - 10_000))
        printed = [line.strip() for line in self._errors.read().split("\n") if line.strip()]
        return f"{what}; it last printed '{printed[-1][:200]}'" if printed else what

    def _list(self, connection: _Connection, patience: float) -> None:
        """List the tools anew. Raises _Lost."""

        async def walked(client: Any) -> list[Any]:
            found, cursor = [], None
            for _ in range(PAGES):
                page = await client.list_tools(cursor=cursor)
                found += page.tools
                cursor = page.next_cursor
                if cursor is None:
                    break
            return found

        connection.changed = False
        try:
            connection.cards = {tool.name: _card(tool) for tool in self._ask(connection, walked, patience)}
        except _Lost:
            raise
        except Exception as error:
            raise _Lost(self._why(error)) from error

    def _ask(self, connection: _Connection, what: Callable[[Any], Awaitable[T]], patience: float) -> T:
        """Ask from this thread. Raises _Lost after so many seconds, and what the SDK raises."""

        async def bounded() -> T:
            return await asyncio.wait_for(what(connection.client), patience)

        if connection.task is None or connection.task.done():
            raise _Lost("the connection is closed")
        asked = asyncio.run_coroutine_threadsafe(bounded(), self._loop)
        try:
            return asked.result(patience + ALIVE)
        except (Late, TimeoutError, asyncio.CancelledError) as error:
            asked.cancel()
            raise _Lost(f"no answer within {patience:g} s") from error


def _is_address(where: str) -> bool:
    return where.startswith(("http://", "https://"))


def _split(command: str) -> tuple[list[str], dict[str, str]]:
    """The words of a command, and the variables set before it. Raises ValueError."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ValueError(f"the command of an MCP server has a quote without its partner: {command}") from error
    environment = {}
    while words and "=" in words[0] and words[0].partition("=")[0].isidentifier():
        name, _, value = words.pop(0).partition("=")
        environment[name] = os.path.expandvars(value)
    if not words:
        raise ValueError('name the command of an MCP server, such as mcp:"python server.py", or its address')
    return words, environment


def _first(error: BaseException) -> BaseException:
    """The first error within a group of them, as asynchronous code raises."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _card(tool: Any) -> Card:
    about = " ".join((tool.description or tool.title or "").split())
    return Card(tool.name, about if len(about) <= LONGEST else f"{about[:LONGEST]} ...", tool.input_schema)


def _text(result: Any) -> str:
    """The text of a result; what is no text is named."""
    parts = [_part(each) for each in result.content]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n".join(parts)


def _part(content: Any) -> str:
    if content.type == "text":
        return str(content.text)
    if content.type == "resource":
        return str(getattr(content.resource, "text", f"({content.resource.uri})"))
    if content.type == "resource_link":
        return f"({content.name}: {content.uri})"
    return f"({content.type}, {content.mime_type})"
