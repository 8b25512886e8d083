//! What speaks to the outside: Redis, models, MCP servers, plain HTTP. Async, without actors.

pub mod http;
pub mod llm;
pub mod mcp;
pub mod redis;
mod tls;
