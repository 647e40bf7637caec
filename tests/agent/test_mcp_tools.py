"""The tools of MCP servers: a small server over stdio and HTTP that fails, hangs, dies and changes on request."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from flowward.agent import mcp_tools
from flowward.agent.mcp_tools import McpServer, McpTool
from flowward.agent.system import refuse_arguments
from flowward.agent.tools import ToolError

PROGRAM = Path(__file__).parents[1] / "mcp_server.py"


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mcp_tools, "ALIVE", 0.7)


@pytest.fixture(scope="module")
def steady(tmp_path_factory: pytest.TempPathFactory) -> Iterator[McpServer]:
    """A server that no test spoils: starting one takes half a second."""
    notes = tmp_path_factory.mktemp("notes")
    with closing(McpServer(f"NOTES={notes} KEY=$HOME {sys.executable} {PROGRAM}", patience=0.5)) as opened:
        yield opened


@pytest.fixture
def server(tmp_path: Path) -> Iterator[McpServer]:
    with closing(McpServer(f"NOTES={tmp_path} {sys.executable} {PROGRAM}", patience=0.7)) as opened:
        yield opened


def tool(server: McpServer, name: str) -> McpTool:
    return next(each for each in server.tools if each.card.name == name)


def starts(folder: Path) -> int:
    return len((folder / "starts").read_text())


def failure(tool: McpTool, **arguments: object) -> str:
    with pytest.raises(ToolError) as raised:
        tool(**arguments)
    return str(raised.value)


def test_cards_are_those_of_the_server(steady: McpServer) -> None:
    card = tool(steady, "add").card
    assert card.about == "Adds two whole numbers." and card.required == ["a", "b"]
    assert {name: each["type"] for name, each in card.properties.items()} == {"a": "integer", "b": "integer"}
    refuse_arguments(card.schema, {"a": 1, "b": 2})


def test_results_are_text(steady: McpServer) -> None:
    assert tool(steady, "add")(a=20, b=22) == "42"
    assert '"row": 1' in tool(steady, "table")(rows=2)


def test_many_threads_get_their_own_results(steady: McpServer) -> None:
    add = tool(steady, "add")
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda n: add(a=n, b=100), range(40))) == [str(n + 100) for n in range(40)]


def test_an_error_of_the_tool_is_its_text(steady: McpServer) -> None:
    assert "fail" in failure(tool(steady, "fail"))
    assert "valid integer" in failure(tool(steady, "add"), a="x", b=1)
    assert tool(steady, "add")(a=1, b=1) == "2"


def test_a_slow_tool_costs_its_call_and_no_restart(steady: McpServer) -> None:
    number = steady._number
    assert "the tool wait of the MCP server" in (said := failure(tool(steady, "wait"), seconds=1.0))
    assert said.endswith("no answer within 0.5 s") and steady._number == number


def test_a_server_that_dies_is_started_again_once(server: McpServer, tmp_path: Path) -> None:
    assert tool(server, "die")(once=True) == "alive" and starts(tmp_path) == 2
    said = failure(tool(server, "die"), once=False)
    assert "the server has ended; it last printed 'out of cheese', also after a restart" in said
    assert starts(tmp_path) == 2 + 1
    assert tool(server, "add")(a=1, b=1) == "2" and starts(tmp_path) == 2 + 2


def test_a_server_that_hangs_is_started_again_once(server: McpServer, tmp_path: Path) -> None:
    assert tool(server, "hang")(once=True) == "awake" and starts(tmp_path) == 2
    assert "no answer within 0.7 s, also after a restart" in failure(tool(server, "hang"), once=False)
    assert tool(server, "add")(a=1, b=1) == "2"


def test_threads_that_find_a_server_dead_start_it_once(server: McpServer, tmp_path: Path) -> None:
    together = threading.Barrier(4)

    def call(number: int) -> str:
        together.wait()
        return tool(server, "hang")(once=True)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(call, range(4))) == ["awake"] * 4
    assert starts(tmp_path) == 2


def test_a_server_that_cannot_be_started_again_is_left_alone_for_a_while(
    server: McpServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "refuse").touch()
    said = failure(tool(server, "die"), once=False)
    assert "it cannot be started again" in said and "no licence found" in said
    before = starts(tmp_path)
    assert failure(tool(server, "add"), a=1, b=1).endswith(said.partition("': ")[2]) and starts(tmp_path) == before
    (tmp_path / "refuse").unlink()
    server._down = (time.monotonic(), "a minute has passed")
    assert tool(server, "add")(a=1, b=1) == "2"


def test_tools_that_change_are_said_so(server: McpServer) -> None:
    add, gone = tool(server, "add"), tool(server, "fail")
    assert tool(server, "change")() == "changed"
    assert "add of the MCP server" in (said := failure(add, a=1, b=1))
    assert said.endswith("has changed since the run began: its arguments are now a, b, c")
    assert failure(gone).endswith("is gone: the server has changed its tools since the run began")
    assert len(tool(server, "table")(rows=1)) > 2


def test_variables_are_set_for_the_server_alone_and_never_shown(
    steady: McpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUR_KEY", "k-123")
    words, environment = mcp_tools._split("KEY=$OUR_KEY OTHER='a b' python server.py --x=y")
    assert (words, environment) == (["python", "server.py", "--x=y"], {"KEY": "k-123", "OTHER": "a b"})
    assert tool(steady, "variable")(name="KEY") == str(Path.home())
    assert tool(steady, "variable")(name="PYTEST_CURRENT_TEST") == "(none)"
    assert "KEY" not in failure(tool(steady, "wait"), seconds=1.0)


def test_closing_ends_the_process(tmp_path: Path) -> None:
    threads = threading.active_count()
    server = McpServer(f"NOTES={tmp_path} {sys.executable} {PROGRAM}")
    server.close()
    server.close()
    assert threading.active_count() == threads
    assert str(tmp_path) not in _variables_of_processes()


def _variables_of_processes() -> str:
    found = ""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += path.read_text("utf-8", "replace")
        except OSError:
            continue
    return found


@pytest.mark.parametrize(
    ("where", "why"),
    [
        ("no-such-program --flag", "there is no program 'no-such-program'"),
        ("", "name the command"),
        ("KEY=1", "name the command"),
        ("python 'server.py", "a quote without its partner"),
        (f"{sys.executable} -Sc 'raise SystemExit(\"no config file\")'", "it last printed 'no config file'"),
        (f"{sys.executable} -Sc 'import time; time.sleep(60)'", "did not start within 1 s"),
        (f"{sys.executable} -Sc 'print(\"hello\")'", "the server has ended"),
        ("http://127.0.0.1:1/mcp", "cannot be used"),
    ],
)
def test_a_missing_server_is_named_before_the_run(where: str, why: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=why) as refused:
        McpServer(where, start=1.0)
    assert "\n" not in str(refused.value) and time.monotonic() - started < 12


@pytest.mark.parametrize("token", [None, "t-9"])
def test_the_token_is_sent_and_a_refusal_is_one_sentence(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []

    class Refusing(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(self.headers["Authorization"])
            self.send_error(401, "who are you")

        def log_message(self, *arguments: object) -> None:
            pass

    if token is None:
        monkeypatch.delenv(mcp_tools.TOKEN, raising=False)
    else:
        monkeypatch.setenv(mcp_tools.TOKEN, token)
    with ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        with pytest.raises(ValueError, match="cannot be used: it answers 401; its token is read from"):
            McpServer(f"http://127.0.0.1:{listening.server_port}/mcp", start=5.0)
        listening.shutdown()
    assert set(seen) == {None if token is None else f"Bearer {token}"}


def test_a_server_on_the_network(tmp_path: Path) -> None:
    """It goes, and comes back under the same address, as after an update."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]

    def begun() -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(PROGRAM), str(port)], env={"NOTES": str(tmp_path)}, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 20
        while time.monotonic() < until:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return process
            time.sleep(0.05)
        raise AssertionError("it does not listen")

    process = begun()
    try:
        with closing(McpServer(f"http://127.0.0.1:{port}/mcp", patience=2.0)) as server:
            assert tool(server, "add")(a=1, b=2) == "3"
            process.kill()
            process.wait()
            assert "it cannot be started again" in failure(tool(server, "add"), a=1, b=2)
            process = begun()
            server._down = (time.monotonic(), "a minute has passed")
            assert tool(server, "add")(a=1, b=3) == "4"
    finally:
        process.kill()
        process.wait()
