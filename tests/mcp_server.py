"""A small MCP server, run over stdio or HTTP, with tools that behave badly on request."""

import os
import sys
import time
from pathlib import Path

from mcp.server.mcpserver import MCPServer

folder = Path(os.environ["NOTES"])  # what it remembers from one start to the next
server = MCPServer("tests")
starts = folder / "starts"
starts.write_text(f"{starts.read_text() if starts.exists() else ''}x")
if (folder / "refuse").exists():
    sys.exit("no licence found")


@server.tool()
def add(a: int, b: int) -> str:
    """Adds two whole numbers."""
    return str(a + b)


@server.tool()
def table(rows: int) -> list[dict[str, int]]:
    """Returns rows of numbers."""
    return [{"row": row} for row in range(rows)]


@server.tool()
def fail() -> str:
    """Always reports an error."""
    raise ValueError("the cupboard is bare")


@server.tool()
def wait(seconds: float) -> str:
    """Answers late, but the server is alive."""
    time.sleep(seconds)
    return "late"


@server.tool()
async def hang(once: bool) -> str:
    """Stops the whole server, also from answering others; with `once` only before its first restart."""
    if once and len(starts.read_text()) > 1:
        return "awake"
    time.sleep(1000)
    return ""


@server.tool()
def die(once: bool) -> str:
    """Ends the process."""
    if once and len(starts.read_text()) > 1:
        return "alive"
    print("out of cheese", file=sys.stderr, flush=True)
    os._exit(1)


@server.tool()
def variable(name: str) -> str:
    """A variable of the environment."""
    return os.environ.get(name, "(none)")


@server.tool()
async def change() -> str:
    """Removes `fail`, and gives `add` another argument."""
    server.remove_tool("fail")
    server.remove_tool("add")

    def add(a: int, b: int, c: int) -> str:
        return str(a + b + c)

    server.add_tool(add)
    return "changed"


if len(sys.argv) > 1:
    server.run("streamable-http", port=int(sys.argv[1]))
else:
    server.run()
