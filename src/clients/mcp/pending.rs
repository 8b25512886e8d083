//! Requests that wait for an answer which may come by another way than they went: over a pipe, or on a stream that the
//! server had open before. Late and duplicate answers find nobody.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::value::RawValue;
use tokio::sync::oneshot;

use super::error::McpError;
use super::inbox::Inbox;
use super::service::Flight;

type Answer = Result<Box<RawValue>, McpError>;

/// The requests of one session.
pub(super) struct Pending {
    inbox: Arc<Inbox>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: HashMap<u64, Call>,
    /// Why no answer will come any more.
    closed: Option<String>,
    /// Whether an answer came at all: what a child says before is about its start, later it may be about the work.
    answered: bool,
}

struct Call {
    answer: oneshot::Sender<Answer>,
    flight: Flight,
}

/// An answer that is waited for; the request is forgotten when this is dropped.
pub(super) struct Expected {
    pending: Arc<Pending>,
    id: u64,
    flight: Flight,
    answer: oneshot::Receiver<Answer>,
}

impl Pending {
    /// Nothing is pending.
    pub(super) fn new(inbox: Arc<Inbox>) -> Arc<Self> {
        Arc::new(Self { inbox, state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a request.
    pub(super) fn expect(self: &Arc<Self>, id: u64, flight: &Flight) -> Result<Expected, McpError> {
        let mut state = self.state();
        if let Some(cause) = &state.closed {
            return Err(self.closed_error(cause, false));
        }
        let (sender, answer) = oneshot::channel();
        state.calls.insert(id, Call { answer: sender, flight: flight.clone() });
        Ok(Expected { pending: Arc::clone(self), id, flight: flight.clone(), answer })
    }

    /// The flight of a request, if somebody still waits for its answer.
    pub(super) fn flight(&self, id: u64) -> Option<Flight> {
        self.state().calls.get(&id).map(|call| call.flight.clone())
    }

    /// An answer came. False if nobody waits for it.
    pub(super) fn answer(&self, id: u64, answer: Answer) -> bool {
        let call = {
            let mut state = self.state();
            let call = state.calls.remove(&id);
            state.answered |= call.is_some();
            call
        };
        let Some(call) = call else { return false };
        let _ = call.answer.send(answer);
        true
    }

    /// Whether anything was answered so far.
    pub(super) fn answered(&self) -> bool {
        self.state().answered
    }

    /// Gives every pending request its error.
    pub(super) fn fail_all(&self, error: impl Fn(&Flight) -> McpError) {
        let calls = std::mem::take(&mut self.state().calls);
        for call in calls.into_values() {
            let _ = call.answer.send(Err(error(&call.flight)));
        }
    }

    /// No answer will come any more.
    pub(super) fn close(&self, cause: &str) {
        self.state().closed = Some(cause.to_owned());
        self.fail_all(|flight| self.closed_error(cause, flight.may_have_run()));
        self.inbox.closed().cancel();
    }

    fn closed_error(&self, cause: &str, may_have_run: bool) -> McpError {
        McpError::Closed { server: Arc::clone(self.inbox.server()), cause: cause.to_owned(), may_have_run }
    }
}

impl Expected {
    /// Waits for the answer.
    pub(super) async fn answer(mut self) -> Answer {
        let answer = (&mut self.answer).await;
        answer.unwrap_or_else(|_| Err(self.pending.closed_error("", self.flight.may_have_run())))
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.pending.state().calls.remove(&self.id);
    }
}
