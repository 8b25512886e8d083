//! MCP servers: an [`Endpoint`] opens a [`Session`] over Streamable HTTP or with a child process, spoken to by JSON-RPC.
//! Reconnecting, retrying and remembering a server's tools are not here: a session that is lost says so and stays lost.
//!
//! ```text
//!  Session ─► Client (initialize, tools/list, tools/call) ─► Deadline ─► CancelOnDrop ─► HttpService | StdioService
//! ```
//!
//! Every arrow is jsonrpsee's `RpcServiceT`, so a layer or another transport is one more implementation of that trait.

pub mod auth;
mod child;
mod client;
mod endpoint;
mod error;
mod http;
mod inbox;
mod layers;
mod service;
mod session;
mod sse;
mod stdio;
mod wire;

pub use client::{CallMeta, McpTool, ServerInfo};
pub use endpoint::Endpoint;
pub use error::McpError;
pub use session::Session;

/// Bytes of one message that are read or sent; more is refused while it is read, before it is held.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
