//! What speaks to the outside: Redis, models, MCP servers, plain HTTP. Async, without actors.

pub mod http;
pub mod llm;
pub mod mcp;
pub mod redis;
mod sse;
mod tls;

/// What a fuzzer reads with.
#[cfg(fuzzing)]
pub mod fuzz {
    /// An event stream.
    pub fn events(bytes: &[u8]) {
        drop(super::sse::fuzz(bytes));
    }

    /// The answer of a model that comes as an event stream, in each of the protocols.
    pub fn model_stream(bytes: &[u8]) {
        let events: Vec<String> = super::sse::fuzz(bytes).into_iter().map(|event| event.data).collect();
        super::llm::fuzz(&events);
    }
}
