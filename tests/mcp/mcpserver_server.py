"""An MCPServer (PyPI `mcp` 2.x) for the tests: it speaks both eras.

    python mcpserver_server.py stdio
    python mcpserver_server.py http PORT [json]
"""

import sys

import anyio
from mcp.server.mcpserver import Context, MCPServer
from mcp.types import ToolAnnotations

server = MCPServer("mcpserver-under-test", instructions="Add numbers.", log_level="WARNING")


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
    found = ctx.request_context.meta
    return dict(found) if isinstance(found, dict) else found.model_dump(by_alias=True)


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


if sys.argv[1] == "http":
    server.run(
        transport="streamable-http", host="127.0.0.1", port=int(sys.argv[2]), json_response="json" in sys.argv
    )
else:
    server.run()
