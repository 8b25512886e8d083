//! The seam: what a transport and a layer of the MCP client look like to jsonrpsee, and what travels with a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use jsonrpsee::core::middleware::RpcServiceT;
use jsonrpsee::types::Request;
use serde_json::value::RawValue;
use tokio::time::Instant;

use super::era::Dialect;
use super::error::McpError;
use crate::domain::tool::Progress;
use crate::ports::ProgressSender;

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

/// What is known of a request before it leaves.
pub(super) struct FlightPlan {
    /// What is asked for, in words.
    pub(super) what: String,
    /// How long the server may be silent.
    pub(super) limit: Duration,
    /// How long the answer may take, whatever the server tells meanwhile.
    pub(super) longest: Duration,
    /// Whether a tool takes effect.
    pub(super) effect: bool,
    /// How the request is made up.
    pub(super) dialect: Dialect,
    /// Whether the server is told when we give up; there is nobody to tell where that is the end of the connection.
    pub(super) cancellable: bool,
    /// What a modern request repeats in its headers: the name, and the arguments that the tool marks.
    pub(super) name: Option<String>,
    /// The headers of those arguments.
    pub(super) mirrored: Vec<(String, String)>,
    /// Who wants to know how far it has come.
    pub(super) progress: Option<ProgressSender>,
}

struct FlightState {
    plan: FlightPlan,
    started: Instant,
    /// Milliseconds from the start to the last sign of life.
    heard: AtomicU64,
    sent: AtomicBool,
}

impl FlightPlan {
    /// A request that calls no tool.
    pub(super) fn plain(method: &str, limit: Duration) -> Self {
        Self {
            what: format!("`{method}`"),
            limit,
            longest: limit,
            effect: false,
            dialect: Dialect::Legacy,
            cancellable: true,
            name: None,
            mirrored: Vec::new(),
            progress: None,
        }
    }

    /// A call of a tool.
    pub(super) fn tool(name: &str, limit: Duration, longest: Duration) -> Self {
        Self {
            what: format!("the tool `{name}`"),
            longest,
            effect: true,
            name: Some(name.to_owned()),
            ..Self::plain("", limit.min(longest))
        }
    }

    /// Off it goes.
    pub(super) fn start(self) -> Flight {
        let (heard, sent) = (AtomicU64::new(0), AtomicBool::new(false));
        Flight(Arc::new(FlightState { plan: self, started: Instant::now(), heard, sent }))
    }
}

impl Flight {
    /// The flight of a request; one that brought none is taken for a tool's, which is the careful reading.
    pub(super) fn of(request: &Request<'_>) -> Self {
        let unknown = || FlightPlan::tool(&request.method, Duration::MAX, Duration::MAX).start();
        request.extensions.get::<Self>().cloned().unwrap_or_else(unknown)
    }

    /// What was planned.
    pub(super) fn plan(&self) -> &FlightPlan {
        &self.0.plan
    }

    /// The moment at which we give up as things are, and the limit that is reached then. None if there is none.
    pub(super) fn ends(&self) -> Option<(Instant, Duration)> {
        let FlightState { plan, started, heard, .. } = &*self.0;
        let heard = Duration::from_millis(heard.load(Ordering::Acquire));
        let silence = heard.checked_add(plan.limit).and_then(|end| started.checked_add(end));
        match (silence, started.checked_add(plan.longest)) {
            (Some(silence), Some(end)) if end <= silence => Some((end, plan.longest)),
            (Some(silence), _) => Some((silence, plan.limit)),
            (None, end) => end.map(|end| (end, plan.longest)),
        }
    }

    /// The server told how far it has come.
    pub(super) fn progressed(&self, progress: Progress) {
        let heard = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.heard.store(heard, Ordering::Release);
        if let Some(sender) = &self.0.plan.progress {
            sender.send_replace(Some(progress));
        }
    }

    /// The first byte leaves now.
    pub(super) fn leave(&self) {
        self.0.sent.store(true, Ordering::Release);
    }

    /// The server sent the request back unread.
    pub(super) fn come_back(&self) {
        self.0.sent.store(false, Ordering::Release);
    }

    /// Whether the server may have seen the request.
    pub(super) fn has_left(&self) -> bool {
        self.0.sent.load(Ordering::Acquire)
    }

    /// Whether a tool may have taken effect by now.
    pub(super) fn may_have_run(&self) -> bool {
        self.0.plan.effect && self.has_left()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn progress_moves_the_end_up_to_the_longest_time() {
        let second = Duration::from_secs(1);
        let flight = FlightPlan::tool("t", 10 * second, 25 * second).start();
        let start = Instant::now();
        assert_eq!(flight.ends(), Some((start + 10 * second, 10 * second)));
        tokio::time::advance(8 * second).await;
        flight.progressed(Progress::default());
        assert_eq!(flight.ends(), Some((start + 18 * second, 10 * second)));
        tokio::time::advance(9 * second).await;
        flight.progressed(Progress::default());
        assert_eq!(flight.ends(), Some((start + 25 * second, 25 * second)));
        assert_eq!(FlightPlan::plain("x", Duration::MAX).start().ends(), None);
    }
}
