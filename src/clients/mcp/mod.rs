//! MCP servers: an [`Endpoint`] opens a [`Session`] over Streamable HTTP or with a child process, spoken to by JSON-RPC.
//! Reconnecting, retrying and remembering a server's tools are not here: a session that is lost says so and stays lost.
//!
//! ```text
//!  Session ─► Client (discover or initialize, list, call) ─► Deadline ─► CancelOnDrop ─► Http | OldSse | StdioService
//! ```
//!
//! Every arrow is jsonrpsee's `RpcServiceT`, so a layer or another transport is one more implementation of that trait.

pub mod auth;
mod child;
mod client;
mod endpoint;
mod era;
mod error;
mod http;
mod inbox;
mod input;
mod layers;
mod list;
mod mirror;
mod open;
mod pending;
mod service;
mod session;
mod sse;
mod stdio;
mod wire;

pub use client::{CallMeta, McpTool, ServerInfo, ToolListing};
pub use endpoint::Endpoint;
pub use era::Era;
pub use error::McpError;
pub use input::AnswerInput;
pub use session::Session;

/// Bytes of one message that are read or sent; more is refused while it is read, before it is held.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;
