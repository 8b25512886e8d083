//! MCP servers: a typed client over Streamable HTTP or stdio.
