//! What a server sends unasked, the same for every transport: notifications, and requests that we answer or decline.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::value::RawValue;
use tokio_util::sync::CancellationToken;

/// The receiving side of one session.
pub(super) struct Inbox {
    server: Arc<str>,
    tools_changed: AtomicU64,
    noise: AtomicU64,
    closed: CancellationToken,
}

impl Inbox {
    /// Of a session with `server`.
    pub(super) fn new(server: Arc<str>) -> Arc<Self> {
        Arc::new(Self {
            server,
            tools_changed: AtomicU64::new(0),
            noise: AtomicU64::new(0),
            closed: CancellationToken::new(),
        })
    }

    /// The server's name in the configuration.
    pub(super) fn server(&self) -> &Arc<str> {
        &self.server
    }

    /// Fires once the session is of no more use.
    pub(super) fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// How often the server said that its tools changed.
    pub(super) fn tools_changed(&self) -> u64 {
        self.tools_changed.load(Ordering::Acquire)
    }

    /// A notification came.
    pub(super) fn notification(&self, method: &str) {
        if method == "notifications/tools/list_changed" {
            self.tools_changed.fetch_add(1, Ordering::AcqRel);
            tracing::debug!(mcp.server = %self.server, "tools changed");
        }
    }

    /// The answer to a request of the server: `ping` gets its pong, everything else is declined, as we offered nothing.
    pub(super) fn answer(&self, id: &RawValue, method: &str) -> String {
        match method {
            "ping" => format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{{}}}}"#),
            _ => {
                tracing::debug!(mcp.server = %self.server, "request of the server declined");
                format!(r#"{{"jsonrpc":"2.0","id":{id},"error":{{"code":-32601,"message":"Method not found"}}}}"#)
            }
        }
    }

    /// Something came that belongs to nothing. Logged at each doubling, so that a flood stays a few lines.
    pub(super) fn noise(&self, kind: &'static str) {
        let count = self.noise.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            tracing::debug!(mcp.server = %self.server, kind, count, "message dropped");
        }
    }
}
