"""A FastMCP server (PyPI `mcp` 1.x) for the tests.

    python fastmcp_server.py stdio
    python fastmcp_server.py http PORT [json]
"""

import os
import sys

import anyio
from mcp.server.fastmcp import Context, FastMCP
from mcp.shared.exceptions import McpError
from mcp.types import ToolAnnotations

over_http = sys.argv[1] == "http"
server = FastMCP(
    "fastmcp-under-test",
    instructions="Add numbers.",
    host="127.0.0.1",
    port=int(sys.argv[2]) if over_http else 0,
    json_response="json" in sys.argv,
    log_level="WARNING",
)


@server.tool(title="Adds", annotations=ToolAnnotations(readOnlyHint=True, idempotentHint=True))
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail(reason: str) -> str:
    """Fails."""
    raise ValueError(reason)


@server.tool()
async def meta(ctx: Context) -> dict:
    """Gives back the `_meta` of the call."""
    return ctx.request_context.meta.model_dump()


@server.tool()
async def wait(seconds: float, log: str, ctx: Context) -> str:
    """Waits; writes into the file `log` when it starts and when it is cancelled."""

    def note(word: str) -> None:
        with open(log, "a") as file:
            file.write(word + "\n")

    note("started")
    try:
        for step in range(10):
            await ctx.report_progress(step, 10)
            await anyio.sleep(seconds / 10)
    except anyio.get_cancelled_exc_class():
        note("cancelled")
        raise
    note("finished")
    return "waited"


@server.tool()
def crash() -> str:
    """Ends the process in the middle of the call."""
    os._exit(3)


@server.tool()
async def ping_the_client(ctx: Context) -> str:
    """Asks the client for a pong."""
    with anyio.fail_after(5):
        await ctx.session.send_ping()
    return "pong"


@server.tool()
async def tell_that_tools_changed(ctx: Context) -> None:
    """Says that the tools changed."""
    await ctx.session.send_tool_list_changed()


@server.tool()
async def ask_for_roots(ctx: Context) -> str:
    """Asks the client for something that it does not offer."""
    try:
        with anyio.fail_after(5):
            await ctx.session.list_roots()
    except McpError as error:
        return str(error.error.code)
    return "answered"


server.run(transport="streamable-http" if over_http else "stdio")
