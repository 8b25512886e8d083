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
#[cfg(test)]
mod codes;
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
mod stdio;
mod task;
mod wire;

pub use client::{CallMeta, McpTool, ServerInfo, ToolListing};
pub use endpoint::Endpoint;
pub use era::Era;
pub use error::McpError;
pub use input::{AnswerInput, Mode, Question, Reply};
pub use session::Session;
pub use task::{Begun, Look};

/// Bytes of one message that are read or sent; more is refused while it is read, before it is held.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;

/// What a fuzzer reads with: everything that comes from a server goes through one of these first.
#[cfg(fuzzing)]
pub mod fuzz {
    /// The output of a child process: lines, each a frame of JSON-RPC.
    pub fn output(bytes: &[u8]) {
        super::stdio::fuzz(bytes);
    }

    /// One frame of JSON-RPC.
    pub fn frame(bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            drop(super::wire::parse(text));
        }
    }
}
