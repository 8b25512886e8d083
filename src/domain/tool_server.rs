//! What is known of one tool server, as a value: for the API, the command line and the metrics.

use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;

use crate::domain::outcome::Failure;

/// Whether a server can be called.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ServerState {
    /// Nobody has needed it yet.
    #[default]
    Idle,
    /// It answered the last time it was asked.
    Up,
    /// It could not be reached, or it ended.
    Down,
}

/// The last thing that went wrong with a server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServerTrouble {
    /// The stable name of the cause.
    pub code: String,
    /// In a sentence.
    pub message: String,
    /// When.
    pub at: Timestamp,
}

/// One tool server.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ServerStatus {
    /// Its configured name.
    pub name: String,
    /// `http`, `sse` or `stdio`; whether one with a URL speaks HTTP+SSE is known once it has been met.
    pub transport: &'static str,
    /// Whether the worker is ready only while it answers.
    pub required: bool,
    /// Whether it can be called.
    pub state: ServerState,
    /// `legacy` or `modern`, once it has been met.
    pub era: Option<&'static str>,
    /// The protocol version that is spoken with it.
    pub protocol_version: Option<String>,
    /// What it calls itself, with its version.
    pub server: Option<String>,
    /// Its tools that may be used, as last listed; kept while it is away.
    pub tools: Option<usize>,
    /// When they were listed.
    pub listed_at: Option<Timestamp>,
    /// Milliseconds that its last answer took.
    pub latency_ms: Option<u64>,
    /// Calls under way.
    pub in_flight: usize,
    /// Sessions that were opened.
    pub connects: u64,
    /// The last thing that went wrong, also when it has passed.
    pub last_error: Option<ServerTrouble>,
}

impl ServerStatus {
    /// Something went wrong.
    pub fn failed(&mut self, failure: &Failure) {
        let (code, message) = (failure.code.to_string(), failure.message.clone());
        self.last_error = Some(ServerTrouble { code, message, at: Timestamp::now() });
    }

    /// It answered.
    pub fn answered(&mut self, took: Duration) {
        self.latency_ms = Some(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
    }
}
