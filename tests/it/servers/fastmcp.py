"""A FastMCP server (PyPI `mcp` 1.x) for the tests of the whole worker.

    python fastmcp.py stdio
    python fastmcp.py http PORT
"""

import os
import sys

import anyio
from mcp.server.fastmcp import Context, FastMCP, Image
from pydantic import BaseModel

over_http = sys.argv[1] == "http"
server = FastMCP(
    "fastmcp-under-test",
    host="127.0.0.1",
    port=int(sys.argv[2]) if over_http else 0,
    log_level="WARNING",
)


@server.tool()
def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


@server.tool()
def fail(reason: str) -> str:
    """Fails."""
    raise ValueError(reason)


@server.tool()
async def say(text: str, after: float = 0) -> str:
    """Says the text after so many seconds."""
    await anyio.sleep(after)
    return text


@server.tool()
def pid() -> int:
    """Gives this process's id."""
    return os.getpid()


class Seat(BaseModel):
    """What is asked of a person."""

    seat: str
    meal: str = "none"


@server.tool()
async def book(flight: str, ctx: Context) -> str:
    """Books a seat that a person chooses."""
    answer = await ctx.elicit(f"Which seat on {flight}?", schema=Seat)
    if answer.action != "accept":
        return f"not booked: {answer.action}"
    return f"booked {answer.data.seat} with {answer.data.meal}"


@server.tool()
def rows(count: int) -> list[dict]:
    """Gives so many rows."""
    return [{"row": row, "name": f"row number {row}"} for row in range(count)]


@server.tool()
def picture(size: int) -> Image:
    """Paints a picture of so many bytes."""
    return Image(data=bytes(size), format="png")


@server.tool()
def crash() -> str:
    """Ends this process in the middle of the call."""
    os._exit(3)


server.run(transport="streamable-http" if over_http else "stdio")
