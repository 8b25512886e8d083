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
mod sse;
mod stdio;
mod wire;

pub use client::{CallMeta, McpTool, ServerInfo, ToolListing};
pub use endpoint::Endpoint;
pub use era::Era;
pub use error::McpError;
pub use input::{AnswerInput, Mode, Question, Reply};
pub use session::Session;

/// Bytes of one message that are read or sent; more is refused while it is read, before it is held.
const MAX_MESSAGE: usize = 32 * 1024 * 1024;

/// What a fuzzer reads with: everything that comes from a server goes through one of these first.
#[cfg(fuzzing)]
pub mod fuzz {
    /// One frame of JSON-RPC.
    pub fn frame(bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            drop(super::wire::parse(text));
        }
    }

    /// An event stream that comes in two pieces; what is read of it must not depend on where it was cut.
    pub fn events(bytes: &[u8]) {
        let Some((&cut, bytes)) = bytes.split_first() else { return };
        let read = |pieces: &[&[u8]]| {
            let mut events = Vec::new();
            let mut decoder = super::sse::SseDecoder::new(1 << 20);
            for piece in pieces {
                decoder.feed(piece, |event| events.push(event)).expect("less than the limit");
            }
            events
        };
        let (first, second) = bytes.split_at(usize::from(cut).min(bytes.len()));
        assert_eq!(read(&[bytes]), read(&[first, second]));
    }
}
