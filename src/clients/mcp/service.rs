//! The seam: what a transport and a layer of the MCP client look like to jsonrpsee, and what travels with a request.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use jsonrpsee::core::middleware::RpcServiceT;
use jsonrpsee::types::Request;
use serde_json::value::RawValue;
use tokio::time::{Instant, sleep_until};

use super::era::Dialect;
use super::error::McpError;
use crate::domain::tool::Progress;
use crate::ports::ProgressSender;

/// Nobody looks at the clock more often than this.
const LEAST_SLEEP: Duration = Duration::from_millis(1);

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
    /// Since when that counts, if not since this request: the start of a call that takes several of them.
    pub(super) begun: Option<Instant>,
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
    /// How many of us keep the server waiting.
    pauses: AtomicUsize,
}

/// While this is held the server's silence is our own doing, and does not count.
pub(super) struct Pause(Flight);

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.heard();
        self.0.0.pauses.fetch_sub(1, Ordering::AcqRel);
    }
}

impl FlightPlan {
    /// A request that calls no tool.
    pub(super) fn plain(method: &str, limit: Duration) -> Self {
        Self {
            what: format!("`{method}`"),
            limit,
            longest: limit,
            begun: None,
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
            what: Self::in_words(name),
            longest,
            effect: true,
            name: Some(name.to_owned()),
            ..Self::plain("", limit.min(longest))
        }
    }

    /// A tool, in words.
    pub(super) fn in_words(tool: &str) -> String {
        format!("the tool `{tool}`")
    }

    /// Off it goes.
    pub(super) fn start(self) -> Flight {
        let (heard, sent, pauses) = (AtomicU64::new(0), AtomicBool::new(false), AtomicUsize::new(0));
        Flight(Arc::new(FlightState { plan: self, started: Instant::now(), heard, sent, pauses }))
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
        let FlightState { plan, started, heard, pauses, .. } = &*self.0;
        let heard = Duration::from_millis(heard.load(Ordering::Acquire));
        let paused = pauses.load(Ordering::Acquire) > 0;
        let silence = heard.checked_add(plan.limit).filter(|_| !paused).and_then(|end| started.checked_add(end));
        match (silence, plan.begun.unwrap_or(*started).checked_add(plan.longest)) {
            (Some(silence), Some(end)) if end <= silence => Some((end, plan.longest)),
            (Some(silence), _) => Some((silence, plan.limit)),
            (None, end) => end.map(|end| (end, plan.longest)),
        }
    }

    /// Waits until the request has had its time; returns the limit that it reached.
    pub(super) async fn out_of_time(&self) -> Duration {
        loop {
            let now = Instant::now();
            // Signs of life and pauses move the end, and the end of a pause brings it nearer: but to no sooner than its
            // limit from now.
            let look = now.checked_add(self.plan().limit.max(LEAST_SLEEP));
            match (self.ends(), look) {
                (Some((end, limit)), _) if end <= now => return limit,
                (Some((end, _)), look) => sleep_until(look.map_or(end, |look| look.min(end))).await,
                (None, Some(look)) => sleep_until(look).await,
                (None, None) => std::future::pending().await,
            }
        }
    }

    /// From now on until the value is dropped the server waits for us.
    pub(super) fn pause(&self) -> Pause {
        self.0.pauses.fetch_add(1, Ordering::AcqRel);
        Pause(self.clone())
    }

    fn heard(&self) {
        let heard = u64::try_from(self.0.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.0.heard.store(heard, Ordering::Release);
    }

    /// The server told how far it has come.
    pub(super) fn progressed(&self, progress: Progress) {
        self.heard();
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

    #[tokio::test(start_paused = true)]
    async fn a_pause_is_no_silence_and_the_silence_after_it_is() {
        let second = Duration::from_secs(1);
        let flight = FlightPlan::tool("t", 10 * second, 60 * second).start();
        let start = Instant::now();
        let waiting = tokio::spawn({
            let flight = flight.clone();
            async move { flight.out_of_time().await }
        });
        tokio::time::sleep(8 * second).await;
        let (pause, inner) = (flight.pause(), flight.pause());
        tokio::time::sleep(25 * second).await;
        drop(inner);
        assert!(!waiting.is_finished(), "somebody still keeps it waiting");
        assert_eq!(flight.ends(), Some((start + 60 * second, 60 * second)), "not for ever");
        drop(pause);
        assert_eq!(waiting.await.expect("no panic"), 10 * second);
        assert_eq!(start.elapsed(), 43 * second, "8 and 25, and 10 of silence");
    }

    #[tokio::test(start_paused = true)]
    async fn the_rounds_of_a_call_share_its_longest_time() {
        let second = Duration::from_secs(1);
        let begun = Instant::now();
        tokio::time::advance(8 * second).await;
        let plan = FlightPlan { begun: Some(begun), ..FlightPlan::tool("t", 5 * second, 10 * second) };
        assert_eq!(plan.start().out_of_time().await, 10 * second);
        assert_eq!(begun.elapsed(), 10 * second);
    }
}
