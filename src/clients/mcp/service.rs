//! The seam: what a transport and a layer of the MCP client look like to jsonrpsee, and what travels with a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jsonrpsee::core::middleware::RpcServiceT;
use jsonrpsee::types::Request;
use serde_json::value::RawValue;

use super::error::McpError;

/// A transport, or layers around one.
pub(super) trait McpService:
    RpcServiceT<
        MethodResponse = Result<Box<RawValue>, McpError>,
        NotificationResponse = Result<(), McpError>,
        BatchResponse = NoBatches,
    > + Clone
    + Send
    + Sync
    + 'static
{
}

impl<S> McpService for S where
    S: RpcServiceT<
            MethodResponse = Result<Box<RawValue>, McpError>,
            NotificationResponse = Result<(), McpError>,
            BatchResponse = NoBatches,
        > + Clone
        + Send
        + Sync
        + 'static
{
}

/// The protocol has no batches since 2025-06-18: a batch is not sent.
pub(super) struct NoBatches;

/// What is known of one request while it is under way. Travels in the request's extensions.
#[derive(Clone)]
pub(super) struct Flight(Arc<FlightState>);

struct FlightState {
    what: String,
    limit: Duration,
    effect: bool,
    sent: AtomicBool,
}

impl Flight {
    /// A request that calls no tool.
    pub(super) fn plain(method: &str, limit: Duration) -> Self {
        Self::new(format!("`{method}`"), limit, false)
    }

    /// A call of a tool.
    pub(super) fn tool(name: &str, limit: Duration) -> Self {
        Self::new(format!("the tool `{name}`"), limit, true)
    }

    fn new(what: String, limit: Duration, effect: bool) -> Self {
        Self(Arc::new(FlightState { what, limit, effect, sent: AtomicBool::new(false) }))
    }

    /// The flight of a request; one that brought none is taken for a tool's, which is the careful reading.
    pub(super) fn of(request: &Request<'_>) -> Self {
        request.extensions.get::<Self>().cloned().unwrap_or_else(|| Self::tool(&request.method, Duration::MAX))
    }

    /// What is asked for, in words.
    pub(super) fn what(&self) -> &str {
        &self.0.what
    }

    /// How long the answer may take.
    pub(super) fn limit(&self) -> Duration {
        self.0.limit
    }

    /// The first byte leaves now.
    pub(super) fn leave(&self) {
        self.0.sent.store(true, Ordering::Release);
    }

    /// Whether the server may have seen the request.
    pub(super) fn has_left(&self) -> bool {
        self.0.sent.load(Ordering::Acquire)
    }

    /// Whether a tool may have taken effect by now.
    pub(super) fn may_have_run(&self) -> bool {
        self.0.effect && self.has_left()
    }
}
